"""The operations that read the journal, with their requests and responses.

Clients see only their own callbacks. Another client's are `not_found`. Operators see all.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, Field, StringConstraints

from shared.contracts.callback import ClientId
from shared.contracts.journal import (
    DEFAULT_PAGE_SIZE,
    RESPONSE,
    Attempt,
    AttemptOutcome,
    AuditEntry,
    CallbackAttempt,
    Cursor,
    Entry,
    EntryKind,
    Gap,
    Limit,
    Origin,
    SearchText,
    SpanTime,
)
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE, Key
from shared.topology import JOURNAL_REQUESTS

# Entries of one callback in a response. One that recurs for years has more.
MAX_TIMELINE: Final = 200
# Client ids in a response.
MAX_CLIENTS: Final = 100
# An outcome, or a status code of HTTP.
STATUS_PATTERN: Final = r"^(delivered|failed|dead|dispatch_failed|[1-5][0-9]{2})$"

CallbackRef = Annotated[
    SearchText, Field(description="The id of the scheduled callback, or the `webhook-id`.")
]
SelectedClient = Annotated[
    ClientId | None,
    Field(description="Only for operators: whose callback it is, if several have used the id."),
]


class ListAttempts(BaseModel):
    """Search attempts, the latest first. All given fields must match."""

    model_config = ENVELOPE

    target: Origin | None = None
    status: Annotated[str, StringConstraints(pattern=STATUS_PATTERN)] | None = Field(
        default=None,
        description="A status code, such as `503`, or an outcome. `failed` is every outcome but"
        " `delivered`.",
    )
    reason: SearchText | None = Field(default=None, description="A part of the reason.")
    trace_id: SearchText | None = None
    group_key: Key | None = None
    event_key: Key | None = None
    client_id: ClientId | None = Field(default=None, description="Only for operators.")
    since: SpanTime | None = None
    until: SpanTime | None = None
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_PAGE_SIZE


class AttemptList(BaseModel):
    """A page of attempts, which may have fewer than the limit. The last one has no cursor."""

    model_config = RESPONSE

    items: list[Attempt]
    next_cursor: str | None


class ReadAttempts(BaseModel):
    """List the attempts of one callback, the first one first."""

    model_config = ENVELOPE

    id: CallbackRef
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_PAGE_SIZE


class CallbackAttemptPage(BaseModel):
    """A page of the attempts of one callback. `next_cursor` is null on the last page."""

    model_config = RESPONSE

    items: list[CallbackAttempt]
    next_cursor: str | None


class ReadTimeline(BaseModel):
    """Read the story of one callback: its last steps, or those before the cursor."""

    model_config = ENVELOPE

    id: CallbackRef
    client_id: SelectedClient = None
    cursor: Cursor | None = None


class StepKind(StrEnum):
    """What a step of a timeline is about."""

    SCHEDULED = "scheduled"
    RESCHEDULED = "rescheduled"
    DISPATCHED = "dispatched"
    ATTEMPT = "attempt"
    TIER = "tier"  # waits for the next attempt, until `until`
    DISPATCH_FAILED = "dispatch_failed"  # ended without a further attempt
    RETRY = "retry"  # waits in the scheduler for a main retry, until `until`
    EXPIRED = "expired"
    NOTIFIED = "notified"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"
    REPLAYED = "replayed"
    REDRIVEN = "redriven"
    DISCARDED = "discarded"
    SENT = "sent"  # an e-mail or SMS
    RETURNED = "returned"  # a message that was not sent; its mailing decides


class Step(BaseModel):
    """A step of a timeline. `entry` is the entry of the journal behind it."""

    model_config = RESPONSE

    at: AwareDatetime
    kind: StepKind
    text: str = Field(description="A sentence for people.")
    until: AwareDatetime | None = None
    entry: Entry


class Timeline(BaseModel):
    """The story of one callback, the first step first."""

    model_config = RESPONSE

    id: str
    items: list[Step]
    next_cursor: str | None = Field(
        description="Of the steps before these; null if there are none."
    )
    kept: bool = Field(description="Whether its request is kept, so that it can be replayed.")
    gaps: list[Gap] = Field(description="Facts that were missed since its first step.")


class Tail(BaseModel):
    """Read entries that were recorded after `after`, the first one first."""

    model_config = ENVELOPE

    after: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Default: only the position, and no entries."
    )
    kinds: list[EntryKind] | None = None
    outcome: AttemptOutcome | None = None
    target: Origin | None = None
    client_id: ClientId | None = None
    limit: Limit = DEFAULT_PAGE_SIZE


class TailPage(BaseModel):
    """Entries after a position. `seq` is the position for the next request."""

    model_config = RESPONSE

    items: list[Entry]
    seq: int = Field(description="Grows also if none of the new entries matches.")


class ListClientIds(BaseModel):
    """List the client ids with entries in the journal. Only for operators."""

    model_config = ENVELOPE

    prefix: Annotated[str, StringConstraints(max_length=255)] = ""
    limit: Annotated[int, Field(ge=1, le=MAX_CLIENTS)] = MAX_CLIENTS


class ClientIdList(BaseModel):
    """Client ids in order. The anonymous client has none, and is not listed."""

    model_config = RESPONSE

    items: list[str]


class ListAudit(BaseModel):
    """List actions, the latest first. Only for operators."""

    model_config = ENVELOPE

    actor: SearchText | None = None
    action: SearchText | None = None
    client_id: ClientId | None = None
    since: SpanTime | None = None
    until: SpanTime | None = None
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_PAGE_SIZE


class AuditPage(BaseModel):
    """A page of actions. `next_cursor` is null on the last page."""

    model_config = RESPONSE

    items: list[AuditEntry]
    next_cursor: str | None


class RecordAudit(BaseModel):
    """Record an action. Only for the console; the actor is that of the request."""

    model_config = ENVELOPE

    action: SearchText
    object: SearchText | None = None
    client_id: ClientId | None = None
    detail: dict[str, Any] = Field(default_factory=dict)
    result: SearchText = "done"


class Recorded(BaseModel):
    """The action is recorded."""

    model_config = RESPONSE

    recorded: Literal[True] = True


LIST_ATTEMPTS: Final = RpcOperation(JOURNAL_REQUESTS, "ListAttempts", ListAttempts, (AttemptList,))
READ_ATTEMPTS: Final = RpcOperation(
    JOURNAL_REQUESTS, "ReadAttempts", ReadAttempts, (CallbackAttemptPage,)
)
READ_TIMELINE: Final = RpcOperation(JOURNAL_REQUESTS, "ReadTimeline", ReadTimeline, (Timeline,))
TAIL: Final = RpcOperation(JOURNAL_REQUESTS, "Tail", Tail, (TailPage,))
LIST_AUDIT: Final = RpcOperation(JOURNAL_REQUESTS, "ListAudit", ListAudit, (AuditPage,))
RECORD_AUDIT: Final = RpcOperation(JOURNAL_REQUESTS, "RecordAudit", RecordAudit, (Recorded,))
LIST_CLIENT_IDS: Final = RpcOperation(
    JOURNAL_REQUESTS, "ListClientIds", ListClientIds, (ClientIdList,)
)

ATTEMPT_OPERATIONS: Final = (LIST_ATTEMPTS, READ_ATTEMPTS, READ_TIMELINE, TAIL, LIST_CLIENT_IDS)
AUDIT_OPERATIONS: Final = (LIST_AUDIT, RECORD_AUDIT)
