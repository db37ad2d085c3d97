"""Facts: what happened, past tense, on the exchange `outcomes`.

The routing key is the type; of a message that a service of ours owns, `TYPE.OWNER`.
One AMQP message of type `Facts` carries a batch of one type: `{"facts": [ … ]}`.
No fact holds a secret, a payload, or more of a URL than its origin (a path may carry a token).
"""

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

FACTS: Final = "Facts"


class _OfCallback(BaseModel):
    """What every fact about a callback tells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fact_id: str = Field(description="Unique; a repeat of the same fact carries the same id.")
    at: AwareDatetime
    callback_id: str
    client_id: str | None
    target: str | None = Field(description="Scheme, host and port; null where it has none.")
    attempt: int = Field(description="Which try it is about, from 1.")
    owner: str | None = Field(
        default=None, description="The service that had it sent; a part of the routing key then."
    )
    dispatch: int | None = Field(default=None, description="The owner's count of its dispatches.")


class CallbackDelivered(_OfCallback):
    """The receiver answered 2xx."""

    type: Literal["callback.delivered"] = "callback.delivered"
    status: int
    duration: float = Field(description="Seconds.")


class CallbackAttemptFailed(_OfCallback):
    """One try failed; another follows."""

    type: Literal["callback.attempt_failed"] = "callback.attempt_failed"
    error: str
    next_at: AwareDatetime = Field(
        description="When the next try is due, to within the shortest tier (1 s)."
    )


class CallbackDead(_OfCallback):
    """The callback lies in the dead queue, for this reason."""

    type: Literal["callback.dead"] = "callback.dead"
    reason: str


class CallbackDispatchFailed(_OfCallback):
    """The callback was not delivered, and goes back to the service that had it sent."""

    type: Literal["callback.given_back"] = "callback.given_back"
    reason: str
    final: bool = Field(description="Whether no later try can succeed.")


Fact = Annotated[
    CallbackDelivered | CallbackAttemptFailed | CallbackDead | CallbackDispatchFailed,
    Field(discriminator="type"),
]


class Facts(BaseModel):
    """The body of one AMQP message on `outcomes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: list[Fact]
