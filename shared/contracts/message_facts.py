"""Facts about messages to recipients, on the exchange `outcomes`; the type is the routing key.

As with callbacks (facts.py), one AMQP message of type `Facts` carries a batch of one type. Facts
contain no text, address or phone.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.registry import ChannelName


class ReasonCode(StrEnum):
    """Why a message has its status: a closed set, for statistics. A text says more."""

    # Skipped: the message was never published.
    INVALID_RECIPIENT = "invalid_recipient"
    NO_ADDRESS = "no_address"
    INVALID_ADDRESS = "invalid_address"
    NOT_ENABLED = "not_enabled"  # the recipient does not want such messages
    UNSUBSCRIBED = "unsubscribed"
    NOT_RENDERED = "not_rendered"
    # Failed.
    NOT_PUBLISHED = "not_published"  # the posting failed first
    INVALID = "invalid"  # the message violates its contract
    REFUSED = "refused"  # by the provider, for good
    PROVIDER_UNAVAILABLE = "provider_unavailable"  # until the attempts were exhausted
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"  # the provider refused each attempt
    # Failed, expired or cancelled: a mailing had ended before the client got a message.
    NOT_REACHED = "not_reached"
    # Expired, returned or cancelled.
    EXPIRED = "expired"
    STOPPED = "stopped"  # the mailing is paused, cancelled or over
    WINDOW_CLOSED = "window_closed"  # the recipient's local hours are over

    OTHER = "other"  # also a code of a newer version

    @classmethod
    def _missing_(cls, value: object) -> "ReasonCode | None":
        return cls.OTHER if isinstance(value, str) else None


ReturnCode = Literal[ReasonCode.STOPPED, ReasonCode.WINDOW_CLOSED]


class _OfMessage(BaseModel):
    """The fields that all facts about a message share."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    fact_id: str = Field(description="Unique id; a repeated fact has the same id.")
    at: AwareDatetime
    message_id: str
    posting_id: str | None
    mailing_id: str | None = None
    recipient_id: str | None = Field(default=None, description="The recipient of a mailing.")
    channel: ChannelName
    attempt: int = Field(description="Number of the attempt, from 1.")

    @property
    def owner(self) -> str | None:
        """Return the service that settles the message by this fact, None without a posting."""
        return "mailings" if self.posting_id else None


class MessageSent(_OfMessage):
    """The mail server or the gateway accepted the message."""

    type: Literal["message.sent"] = "message.sent"
    duration: float = Field(description="Duration of the attempt in seconds.")


class MessageAttemptFailed(_OfMessage):
    """One attempt failed; another one follows."""

    type: Literal["message.attempt_failed"] = "message.attempt_failed"
    error: str
    next_at: AwareDatetime = Field(
        description="Time of the next attempt, exact to the shortest tier (1 s)."
    )

    @property
    def owner(self) -> None:
        """Return None: the message is not settled yet."""


class MessageFailed(_OfMessage):
    """The message was refused for good or its attempts are exhausted; it is dead-lettered."""

    type: Literal["message.failed"] = "message.failed"
    reason: str
    code: ReasonCode = ReasonCode.OTHER


class MessageExpired(_OfMessage):
    """The message expired before it could be sent. It is dead-lettered, unless a mailing has it."""

    type: Literal["message.expired"] = "message.expired"
    reason: str
    expires_at: AwareDatetime | None = Field(
        default=None,
        description="The time of the message after which it is not sent. A mailing that ends later"
        " publishes it again.",
    )


class MessageReturned(_OfMessage):
    """The message of a mailing was not sent, and has left the queue; the mailing decides on it."""

    type: Literal["message.returned"] = "message.returned"
    code: ReasonCode = Field(description="`stopped` or `window_closed`.")


MessageFact = Annotated[
    MessageSent | MessageAttemptFailed | MessageFailed | MessageExpired | MessageReturned,
    Field(discriminator="type"),
]
MESSAGE_FACT_TYPES: Final = frozenset(
    {
        "message.sent",
        "message.attempt_failed",
        "message.failed",
        "message.expired",
        "message.returned",
    }
)


class MessageFacts(BaseModel):
    """The body of one AMQP message on `outcomes`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    facts: list[MessageFact]
