"""Facts about messages (e-mail, SMS), on the exchange `outcomes`; the type is the routing key.

They travel as those of callbacks do (facts.py): one AMQP message of type `Facts` carries a batch
of one type. None holds a text, an address or a phone.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.registry import ChannelName


class _OfMessage(BaseModel):
    """What every fact about a message tells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fact_id: str = Field(description="Unique; a repeat of the same fact carries the same id.")
    at: AwareDatetime
    message_id: str
    posting_id: str | None
    channel: ChannelName
    attempt: int = Field(description="Which try it is about, from 1.")


class MessageSent(_OfMessage):
    """The mail server or the SMS gateway took it."""

    type: Literal["message.sent"] = "message.sent"
    duration: float = Field(description="Seconds.")


class MessageAttemptFailed(_OfMessage):
    """One try failed; another follows."""

    type: Literal["message.attempt_failed"] = "message.attempt_failed"
    error: str
    next_at: AwareDatetime = Field(
        description="When the next try is due, to within the shortest tier (1 s)."
    )


class MessageFailed(_OfMessage):
    """It was refused for good, or its tries are spent; it lies in the dead queue."""

    type: Literal["message.failed"] = "message.failed"
    reason: str


class MessageExpired(_OfMessage):
    """Its time was over before it could be sent; it lies in the dead queue."""

    type: Literal["message.expired"] = "message.expired"
    reason: str


MessageFact = Annotated[
    MessageSent | MessageAttemptFailed | MessageFailed | MessageExpired,
    Field(discriminator="type"),
]


class MessageFacts(BaseModel):
    """The body of one AMQP message on `outcomes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: list[MessageFact]
