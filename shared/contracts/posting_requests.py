"""The operations of mailings over AMQP, with the models of their requests and responses."""

from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt

from shared.contracts.callback import Identifier
from shared.contracts.postings import Posting
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import Key
from shared.registry import ChannelName
from shared.topology import MAILINGS_REQUESTS

MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100

_STRICT: Final = ConfigDict(
    frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
)
_ANSWER: Final = ConfigDict(frozen=True, extra="forbid")


class PostingState(StrEnum):
    """How far a posting is."""

    ACCEPTED = "accepted"  # nothing was given out yet
    EXPANDING = "expanding"  # its receivers are gone through
    SENDING = "sending"  # all messages are given out; some are not settled yet
    DONE = "done"  # all are settled
    FAILED = "failed"  # it can't be gone on with; `reason` says why. What was given out is sent
    EXPIRED = "expired"  # its time was over before all its receivers were gone through


class MessageState(StrEnum):
    """How far one message to one receiver is."""

    CREATED = "created"  # given out, not settled
    SENT = "sent"
    FAILED = "failed"
    EXPIRED = "expired"
    SKIPPED = "skipped"  # never given out; `why` says what was in the way


class CreatePosting(BaseModel):
    """Operation: take in a posting. A repeat under the same idempotency key changes nothing."""

    model_config = _STRICT

    posting: Posting
    idempotency_key: Key | None = None


class GetPosting(BaseModel):
    """Operation: how far a posting is."""

    model_config = _STRICT

    id: UUID


class ListPostings(BaseModel):
    """Operation: postings, a page at a time; with `from_event`, those that came from it."""

    model_config = _STRICT

    from_event: Identifier | None = None
    cursor: Annotated[str, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = DEFAULT_PAGE_SIZE


class ListPostingMessages(BaseModel):
    """Operation: the messages of a posting, a page at a time."""

    model_config = _STRICT

    id: UUID
    status: MessageState | None = None
    cursor: Annotated[str, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = DEFAULT_PAGE_SIZE


class PostingAccepted(BaseModel):
    """It is committed: each of its receivers will be gone through."""

    model_config = _ANSWER

    id: UUID
    status: PostingState


class PostingProgress(BaseModel):
    """How far a posting is, as a list shows it."""

    model_config = _ANSWER

    id: UUID
    status: PostingState
    reason: str | None = Field(description="Why it failed, or what is in the way just now.")
    from_event: str | None
    template: str
    delivery_type: list[ChannelName]
    accepted_at: AwareDatetime
    expires_at: AwareDatetime | None
    pages: NonNegativeInt = Field(description="Pages of the list of users that are done.")
    receivers: NonNegativeInt = Field(description="Users in them.")
    messages: dict[MessageState, NonNegativeInt] = Field(description="How many, by their state.")


class PostingStatus(PostingProgress):
    """How far a posting is."""

    skipped: dict[str, NonNegativeInt] = Field(description="Those skipped, by the reason why.")


class Postings(BaseModel):
    """A page of postings, newest first."""

    model_config = _ANSWER

    items: list[PostingProgress]
    next_cursor: str | None


class PostingMessage(BaseModel):
    """One message to one receiver."""

    model_config = _ANSWER

    id: UUID
    user_id: str
    channel: ChannelName
    status: MessageState
    why: str | None
    created_at: AwareDatetime
    settled_at: AwareDatetime | None


class PostingMessages(BaseModel):
    """A page of a posting's messages, in the order of their ids."""

    model_config = _ANSWER

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

MAILINGS_OPERATIONS: Final = (CREATE_POSTING, GET_POSTING, LIST_POSTINGS, LIST_POSTING_MESSAGES)
