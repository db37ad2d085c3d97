"""Facts about callbacks: what happened, in the past tense, on the exchange `outcomes`.

The routing key is the type. One AMQP message of type `Facts` carries a batch of one type:
`{"facts": [ … ]}`. If a service of Ringback owns the callback, it also gets the facts in its own
queue. Facts contain no secret and no payload in clear, and only the origin of a URL, because a path
may contain a token. The response and the request, for the journal, are encrypted. Unknown fields
and types are ignored: they are from a newer version.
"""

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

FACTS: Final = "Facts"


class _OfCallback(BaseModel):
    """The fields that all facts about a callback share."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    fact_id: str = Field(description="Unique id; a repeated fact has the same id.")
    at: AwareDatetime
    callback_id: str
    client_id: str | None
    target: str | None = Field(description="Scheme, host and port; null if the URL is not valid.")
    attempt: int = Field(description="Number of the attempt, from 1.")
    owner: str | None = Field(
        default=None,
        description="The service that published the callback.",
    )
    dispatch: int | None = Field(default=None, description="The owner's dispatch number.")
    reference: str | None = Field(
        default=None,
        description="The owner's own id of the callback, if several have the same `callback_id`.",
    )
    trace_id: str | None = None
    replay: str | None = Field(
        default=None,
        description="Id of the job or request that sent the callback again, if any.",
    )
    response: str | None = Field(
        default=None,
        description="The first 1,000 characters of the response's body, encrypted, in base64.",
    )
    request: str | None = Field(
        default=None,
        description="The SendCallback and its message id, encrypted, in base64, if the journal"
        " keeps it. The owner's copy of the fact has none.",
    )


class CallbackDelivered(_OfCallback):
    """The receiver responded with a 2xx status."""

    type: Literal["callback.delivered"] = "callback.delivered"
    status: int
    duration: float = Field(description="Duration of the attempt in seconds.")


class CallbackAttemptFailed(_OfCallback):
    """One attempt failed; another one follows."""

    type: Literal["callback.attempt_failed"] = "callback.attempt_failed"
    error: str
    status: int | None = Field(default=None, description="Status of the response, if any.")
    duration: float | None = Field(default=None, description="Duration of the attempt in seconds.")
    next_at: AwareDatetime = Field(
        description="Time of the next attempt, exact to the shortest tier (1 s)."
    )


class CallbackDead(_OfCallback):
    """The callback is dead-lettered."""

    type: Literal["callback.dead"] = "callback.dead"
    reason: str
    status: int | None = Field(
        default=None, description="Status of the response to the last attempt, if any."
    )
    duration: float | None = Field(
        default=None, description="Duration of the last attempt in seconds; null without one."
    )


class CallbackDispatchFailed(_OfCallback):
    """A dispatch ended without success; the owner decides what follows."""

    type: Literal["callback.dispatch_failed"] = "callback.dispatch_failed"
    attempt: int = Field(description="Number of attempts in this dispatch, from 0.")
    reason: str
    status: int | None = Field(
        default=None, description="Status of the response to the last attempt, if any."
    )
    final: bool = Field(description="True if no later attempt can succeed.")
    retry_after: float = Field(
        default=0.0, description="Seconds that the receiver requested to wait, up to an hour."
    )
    duration: float | None = Field(
        default=None, description="Duration of the last attempt in seconds; null without one."
    )


Fact = Annotated[
    CallbackDelivered | CallbackAttemptFailed | CallbackDead | CallbackDispatchFailed,
    Field(discriminator="type"),
]
FACT_TYPES: Final = frozenset(
    {"callback.delivered", "callback.attempt_failed", "callback.dead", "callback.dispatch_failed"}
)


class Facts(BaseModel):
    """The body of one AMQP message on `outcomes`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    facts: list[Fact]
