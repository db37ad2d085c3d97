"""Facts: what happened, past tense, on the exchange `outcomes`.

The routing key is the type; of a message that a service of ours owns, `TYPE.OWNER`.

One AMQP message of type `Facts` carries a batch of one type: `{"facts": [ … ]}`.
No fact holds a secret, a payload, or more of a URL than its origin (a path may carry a token).
"""

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

FACTS: Final = "Facts"


class CallbackDelivered(BaseModel):
    """The receiver answered 2xx."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["callback.delivered"] = "callback.delivered"
    fact_id: str = Field(description="Unique; a repeat of the same fact carries the same id.")
    at: AwareDatetime
    callback_id: str
    client_id: str | None
    target: str = Field(description="Scheme, host and port.")
    attempt: int
    status: int
    duration: float = Field(description="Seconds.")
    owner: str | None = Field(
        default=None, description="The service that had it sent; a part of the routing key then."
    )
    dispatch: int | None = Field(default=None, description="The owner's count of its dispatches.")


class CallbackAttemptFailed(BaseModel):
    """One try failed; another follows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["callback.attempt_failed"] = "callback.attempt_failed"
    fact_id: str = Field(description="Unique; a repeat of the same fact carries the same id.")
    at: AwareDatetime
    callback_id: str
    client_id: str | None
    target: str
    attempt: int
    error: str
    next_at: AwareDatetime = Field(
        description="When the next try is due, to within the shortest tier (1 s)."
    )
    owner: str | None = Field(
        default=None, description="The service that had it sent; a part of the routing key then."
    )
    dispatch: int | None = Field(default=None, description="The owner's count of its dispatches.")


class CallbackDead(BaseModel):
    """The callback lies in the dead queue, for this reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["callback.dead"] = "callback.dead"
    fact_id: str = Field(description="Unique; a repeat of the same fact carries the same id.")
    at: AwareDatetime
    callback_id: str
    client_id: str | None
    target: str | None
    attempt: int
    reason: str


class CallbackGivenBack(BaseModel):
    """The callback was not delivered, and goes back to the service that had it sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["callback.given_back"] = "callback.given_back"
    fact_id: str = Field(description="Unique; a repeat of the same fact carries the same id.")
    at: AwareDatetime
    callback_id: str
    client_id: str | None
    target: str | None
    attempt: int = Field(description="Tries made.")
    reason: str
    final: bool = Field(description="Whether no later try can succeed.")
    owner: str
    dispatch: int | None


Fact = Annotated[
    CallbackDelivered | CallbackAttemptFailed | CallbackDead | CallbackGivenBack,
    Field(discriminator="type"),
]


class Facts(BaseModel):
    """The body of one AMQP message on `outcomes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: list[Fact]
