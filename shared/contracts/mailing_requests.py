"""The operations on mailings over AMQP, with the models of their requests and responses."""

from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt

from shared.contracts.clients import Client, ClientPhone
from shared.contracts.mailings import (
    AudienceFilter,
    ClientFilter,
    LocalHours,
    MailingChanges,
    MailingContent,
    MailingStatus,
    NewMailing,
    TestPhone,
)
from shared.contracts.posting_requests import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    MessageState,
)
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE, IfMatch, Key
from shared.topology import MAILINGS_REQUESTS

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")
_Cursor = Annotated[str, Field(max_length=255)]
_Limit = Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)]


class CreateMailing(BaseModel):
    """Operation: create a mailing. A repeat with the same idempotency key changes nothing."""

    model_config = ENVELOPE

    mailing: NewMailing
    idempotency_key: Key | None = None


class GetMailing(BaseModel):
    """Operation: return a mailing."""

    model_config = ENVELOPE

    id: UUID


class ListMailings(BaseModel):
    """Operation: list the caller's mailings, newest first."""

    model_config = ENVELOPE

    status: MailingStatus | None = None
    cursor: _Cursor | None = None
    limit: _Limit = DEFAULT_PAGE_SIZE


class ChangeMailing(BaseModel):
    """Operation: change fields of a mailing, as far as its status allows."""

    model_config = ENVELOPE

    id: UUID
    changes: MailingChanges
    if_match: IfMatch = None


class ControlMailing(BaseModel):
    """Operations: start, pause, resume or cancel a mailing."""

    model_config = ENVELOPE

    id: UUID
    if_match: IfMatch = None


class DeleteMailing(BaseModel):
    """Operation: delete a mailing that is not running, with its statistics."""

    model_config = ENVELOPE

    id: UUID
    if_match: IfMatch = None


class TestMailing(BaseModel):
    """Operation: send the text of a mailing to one phone, urgently. It is not counted."""

    __test__ = False  # pytest would collect a class of this name

    model_config = ENVELOPE

    id: UUID
    test: TestPhone


class PreviewMailing(BaseModel):
    """Operation: return the text of a mailing for a client of the directory. Nothing is saved.

    The gateway offers no route for it.
    """

    model_config = ENVELOPE

    content: MailingContent
    phone: ClientPhone | None = Field(
        default=None, description="Phone of the client. Default: a client that the filter matches."
    )


class ListMailingMessages(BaseModel):
    """Operation: list the messages of a mailing."""

    model_config = ENVELOPE

    id: UUID
    status: MessageState | None = None
    client_id: UUID | None = Field(default=None, description="Only messages to this client.")
    cursor: _Cursor | None = None
    limit: _Limit = DEFAULT_PAGE_SIZE


class Mailing(BaseModel):
    """A mailing."""

    model_config = _RESPONSE

    id: UUID
    status: MailingStatus
    channel: str
    text: str | None
    template: str | None
    template_context: dict[str, Any]
    start_at: AwareDatetime
    end_at: AwareDatetime
    filter: ClientFilter
    local_hours: LocalHours | None
    rate_per_minute: int | None
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    reason: str | None = Field(
        description="Why the mailing failed for its clients, or for those of a time zone."
    )
    etag: str = Field(description="Changes with every change; for `If-Match`.")


class Mailings(BaseModel):
    """A page of mailings, newest first."""

    model_config = _RESPONSE

    items: list[Mailing]
    next_cursor: str | None


class MailingDeleted(BaseModel):
    """The mailing does not exist any more."""

    model_config = _RESPONSE

    id: UUID


class TestSent(BaseModel):
    """A test message was published."""

    __test__ = False

    model_config = _RESPONSE

    message_id: UUID


class MailingPreview(BaseModel):
    """The text of a mailing for a client."""

    model_config = _RESPONSE

    client: Client
    text: str


class Audience(BaseModel):
    """The number of clients that a filter matches."""

    model_config = _RESPONSE

    clients: NonNegativeInt


class MailingMessage(BaseModel):
    """A message of a mailing to one client."""

    model_config = _RESPONSE

    id: UUID
    mailing_id: UUID
    client_id: str = Field(description="Id of the client of the directory.")
    created_at: AwareDatetime
    sent_at: AwareDatetime | None
    status: MessageState
    reason: str | None


class MailingMessages(BaseModel):
    """A page of the messages of a mailing."""

    model_config = _RESPONSE

    items: list[MailingMessage]
    next_cursor: str | None


CREATE_MAILING: Final = RpcOperation(MAILINGS_REQUESTS, "CreateMailing", CreateMailing, (Mailing,))
GET_MAILING: Final = RpcOperation(MAILINGS_REQUESTS, "GetMailing", GetMailing, (Mailing,))
LIST_MAILINGS: Final = RpcOperation(MAILINGS_REQUESTS, "ListMailings", ListMailings, (Mailings,))
CHANGE_MAILING: Final = RpcOperation(MAILINGS_REQUESTS, "ChangeMailing", ChangeMailing, (Mailing,))
START_MAILING: Final = RpcOperation(MAILINGS_REQUESTS, "StartMailing", ControlMailing, (Mailing,))
PAUSE_MAILING: Final = RpcOperation(MAILINGS_REQUESTS, "PauseMailing", ControlMailing, (Mailing,))
RESUME_MAILING: Final = RpcOperation(MAILINGS_REQUESTS, "ResumeMailing", ControlMailing, (Mailing,))
CANCEL_MAILING: Final = RpcOperation(MAILINGS_REQUESTS, "CancelMailing", ControlMailing, (Mailing,))
DELETE_MAILING: Final = RpcOperation(
    MAILINGS_REQUESTS, "DeleteMailing", DeleteMailing, (MailingDeleted,)
)
TEST_MAILING: Final = RpcOperation(MAILINGS_REQUESTS, "TestMailing", TestMailing, (TestSent,))
PREVIEW_MAILING: Final = RpcOperation(
    MAILINGS_REQUESTS, "PreviewMailing", PreviewMailing, (MailingPreview,)
)
COUNT_AUDIENCE: Final = RpcOperation(
    MAILINGS_REQUESTS, "CountAudience", AudienceFilter, (Audience,)
)
LIST_MAILING_MESSAGES: Final = RpcOperation(
    MAILINGS_REQUESTS, "ListMailingMessages", ListMailingMessages, (MailingMessages,)
)

CAMPAIGN_OPERATIONS: Final = (
    CREATE_MAILING,
    GET_MAILING,
    LIST_MAILINGS,
    CHANGE_MAILING,
    START_MAILING,
    PAUSE_MAILING,
    RESUME_MAILING,
    CANCEL_MAILING,
    DELETE_MAILING,
    TEST_MAILING,
    PREVIEW_MAILING,
    COUNT_AUDIENCE,
    LIST_MAILING_MESSAGES,
)
