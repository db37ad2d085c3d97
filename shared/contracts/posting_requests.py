"""The operations of mailings over AMQP, with the models of their requests and responses."""

from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt

from shared.contracts.callback import Identifier
from shared.contracts.postings import Posting
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE, Key
from shared.registry import ChannelName
from shared.topology import MAILINGS_REQUESTS

MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")


class PostingState(StrEnum):
    """The state of a posting."""

    ACCEPTED = "accepted"  # no message exists yet
    EXPANDING = "expanding"  # messages are being published
    SENDING = "sending"  # all messages are published, some are not settled
    DONE = "done"  # all messages are settled
    FAILED = "failed"  # expansion failed, see `reason`; published messages are sent
    EXPIRED = "expired"  # it expired before all messages were published


class MessageState(StrEnum):
    """The state of one message to one recipient."""

    CREATED = "created"  # not settled yet
    SENT = "sent"
    FAILED = "failed"
    EXPIRED = "expired"
    SKIPPED = "skipped"  # never published, see `reason`
    CANCELLED = "cancelled"  # its mailing was cancelled


class CreatePosting(BaseModel):
    """Operation: accept a posting. A repeat with the same idempotency key changes nothing."""

    model_config = ENVELOPE

    posting: Posting
    idempotency_key: Key | None = None


class GetPosting(BaseModel):
    """Operation: return the status of a posting."""

    model_config = ENVELOPE

    id: UUID


class ListPostings(BaseModel):
    """Operation: list postings, a page at a time. `from_event` selects those of an event."""

    model_config = ENVELOPE

    from_event: Identifier | None = None
    cursor: Annotated[str, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = DEFAULT_PAGE_SIZE


class ListPostingMessages(BaseModel):
    """Operation: list the messages of a posting, a page at a time."""

    model_config = ENVELOPE

    id: UUID
    status: MessageState | None = None
    cursor: Annotated[str, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = DEFAULT_PAGE_SIZE


class ChangeSubscription(BaseModel):
    """Operation: unsubscribe the recipient that a token names from a kind of e-mail, or undo it."""

    model_config = ENVELOPE

    token: Annotated[str, Field(min_length=1, max_length=200, repr=False)]
    subscribed: bool


class SubscriptionChanged(BaseModel):
    """The subscription is as requested."""

    model_config = _RESPONSE

    subscribed: bool


class PostingAccepted(BaseModel):
    """The posting is stored and will be expanded."""

    model_config = _RESPONSE

    id: UUID
    status: PostingState


class PostingProgress(BaseModel):
    """The progress of a posting, as in a list."""

    model_config = _RESPONSE

    id: UUID
    status: PostingState
    reason: str | None = Field(description="Why it failed, or why it is waiting.")
    from_event: str | None
    template: str
    delivery_type: list[ChannelName]
    accepted_at: AwareDatetime
    expires_at: AwareDatetime | None
    pages: NonNegativeInt = Field(description="Pages of the user list that are done.")
    receivers: NonNegativeInt = Field(description="Users on these pages.")
    messages: dict[MessageState, NonNegativeInt] = Field(description="Number of messages by state.")


class PostingStatus(PostingProgress):
    """The status of a posting."""

    skipped: dict[str, NonNegativeInt] = Field(description="Number of skipped messages by reason.")


class Postings(BaseModel):
    """A page of postings, newest first."""

    model_config = _RESPONSE

    items: list[PostingProgress]
    next_cursor: str | None


class PostingMessage(BaseModel):
    """One message to one recipient."""

    model_config = _RESPONSE

    id: UUID
    user_id: str
    channel: ChannelName
    status: MessageState
    reason: str | None
    created_at: AwareDatetime
    settled_at: AwareDatetime | None


class PostingMessages(BaseModel):
    """A page of the messages of a posting, ordered by id."""

    model_config = _RESPONSE

    items: list[PostingMessage]
    next_cursor: str | None


CREATE_POSTING: Final = RpcOperation(
    MAILINGS_REQUESTS, "CreatePosting", CreatePosting, (PostingAccepted,)
)
GET_POSTING: Final = RpcOperation(MAILINGS_REQUESTS, "GetPosting", GetPosting, (PostingStatus,))
LIST_POSTINGS: Final = RpcOperation(MAILINGS_REQUESTS, "ListPostings", ListPostings, (Postings,))
LIST_POSTING_MESSAGES: Final = RpcOperation(
    MAILINGS_REQUESTS, "ListPostingMessages", ListPostingMessages, (PostingMessages,)
)
CHANGE_SUBSCRIPTION: Final = RpcOperation(
    MAILINGS_REQUESTS, "ChangeSubscription", ChangeSubscription, (SubscriptionChanged,)
)

MAILINGS_OPERATIONS: Final = (
    CREATE_POSTING,
    GET_POSTING,
    LIST_POSTINGS,
    LIST_POSTING_MESSAGES,
    CHANGE_SUBSCRIPTION,
)
