"""The journal's entries, filters, jobs and pages: the models that its operations share."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from shared.contracts.callback import ClientId
from shared.contracts.schedules import STRICT, UtcTime

MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100
# Dead letters or callbacks per second that a job moves.
DEFAULT_RATE: Final = 100.0
MAX_RATE: Final = 10_000.0

RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")

Cursor = Annotated[str, StringConstraints(max_length=255)]
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)]
# A text that is compared with what the journal has stored.
TEXT_PATTERN: Final = r"^[^\x00]{1,1000}$"
SearchText = Annotated[str, StringConstraints(pattern=TEXT_PATTERN)]
ORIGIN_PATTERN: Final = r"^[^\x00-\x20\x7f]{1,300}$"
Origin = Annotated[str, StringConstraints(pattern=ORIGIN_PATTERN)]


def _parse_time(time: Any) -> Any:
    """Return a text as a time. Pydantic alone takes a number in a query for epoch seconds."""
    if not isinstance(time, str):
        return time
    try:
        return datetime.fromisoformat(time.upper())
    except ValueError:
        raise ValueError("is not a time in RFC 3339") from None


SpanTime = Annotated[UtcTime, BeforeValidator(_parse_time)]
Rate = Annotated[float, Field(gt=0, le=MAX_RATE, allow_inf_nan=False)]


class EntryKind(StrEnum):
    """What an entry of the journal records."""

    SCHEDULED = "scheduled"
    RESCHEDULED = "rescheduled"
    DISPATCHED = "dispatched"
    ATTEMPT = "attempt"  # its outcome says how it ended
    DEAD = "dead"  # dead-lettered without an attempt
    DISPATCH_FAILED = "dispatch_failed"  # ended without an attempt; the owner decides
    RETRYING = "retrying"  # a main retry is planned
    NOTIFIED = "notified"
    FAILED = "failed"  # the scheduled callback, for good
    CANCELLED = "cancelled"
    REPLAYED = "replayed"
    REDRIVEN = "redriven"
    DISCARDED = "discarded"
    MESSAGE_SENT = "message_sent"
    MESSAGE_ATTEMPT_FAILED = "message_attempt_failed"
    MESSAGE_FAILED = "message_failed"
    MESSAGE_EXPIRED = "message_expired"
    MESSAGE_RETURNED = "message_returned"
    ENDPOINT_DISABLED = "endpoint_disabled"


class AttemptOutcome(StrEnum):
    """How an attempt ended. After `failed` another one follows from a tier."""

    DELIVERED = "delivered"
    FAILED = "failed"
    DEAD = "dead"
    DISPATCH_FAILED = "dispatch_failed"  # the owner decides what follows


class Entry(BaseModel):
    """One entry of the journal, as it was recorded."""

    model_config = RESPONSE

    seq: int = Field(description="Grows in the order in which entries are recorded.")
    at: AwareDatetime
    kind: EntryKind
    callback_id: str | None = Field(description="The id that the receiver sees.")
    schedule_id: UUID | None = None
    message_id: str | None = Field(default=None, description="Id of an e-mail or SMS.")
    client_id: str | None = Field(description="Null for anonymous callbacks, and for messages.")
    target: str | None = Field(default=None, description="Scheme, host and port.")
    attempt: int | None = None
    dispatch: int | None = None
    status_code: int | None = None
    duration: float | None = Field(default=None, description="Seconds.")
    outcome: AttemptOutcome | None = Field(default=None, description="Only of attempts.")
    reason: str | None = None
    response: str | None = Field(
        default=None, description="The first 1,000 characters of the response's body."
    )
    next_at: AwareDatetime | None = Field(
        default=None, description="Time of the next attempt, or the due time."
    )
    trace_id: str | None = None
    group_key: str | None = None
    event_key: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict, description="Further fields of the fact.")


class CallbackAttempt(BaseModel):
    """One HTTP request of a callback."""

    model_config = RESPONSE

    at: AwareDatetime = Field(description="When it ended.")
    attempt: int = Field(description="Number of the attempt in its dispatch, from 1.")
    target: str | None = Field(description="Scheme, host and port.")
    status_code: int | None = Field(description="Null without a response.")
    duration: float | None = Field(description="Seconds.")
    outcome: AttemptOutcome
    reason: str | None = Field(description="Why it failed.")
    response: str | None = Field(
        description="The first 1,000 characters of the response's body; null if it is not kept."
    )


class Attempt(CallbackAttempt):
    """One HTTP request to a target."""

    callback_id: str = Field(description="The `webhook-id`.")
    schedule_id: UUID | None = Field(description="The scheduled callback, if it is one.")
    client_id: str | None
    dispatch: int | None
    next_at: AwareDatetime | None = Field(description="Time of the next attempt, if one follows.")
    trace_id: str | None


class Gap(BaseModel):
    """Facts that the journal has missed."""

    model_config = RESPONSE

    at: AwareDatetime
    first_offset: int
    last_offset: int
    messages: int | None = Field(description="Messages with facts; null if it is unknown.")
    reason: Literal["backlog_exceeded", "stream_replaced"]


class Filter(BaseModel):
    """Selects dead letters or failed callbacks. All given fields must match."""

    model_config = STRICT

    reason: SearchText | None = None
    target: Origin | None = Field(default=None, description="Scheme, host and port.")
    client_id: ClientId | None = None
    since: SpanTime | None = None
    until: SpanTime | None = None


class JobKind(StrEnum):
    """What a job does with everything that matches its filter."""

    REDRIVE = "redrive"
    DISCARD = "discard"
    REPLAY = "replay"


class JobStatus(StrEnum):
    """The state of a job."""

    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Job(BaseModel):
    """A job. `done` and `failed` count up to `matching`."""

    model_config = RESPONSE

    id: UUID
    kind: JobKind
    status: JobStatus
    queue: str | None = Field(description="The work queue of dead letters.")
    filter: Filter
    rate: float
    matching: int
    done: int
    failed: int
    actor: str | None
    client_id: str | None
    error: str | None = Field(default=None, description="Why the job failed.")
    created_at: AwareDatetime
    finished_at: AwareDatetime | None


class Matching(BaseModel):
    """The result of a dry run."""

    model_config = RESPONSE

    matching: int


class JobStarted(BaseModel):
    """A job that was started by this request, or by its first delivery."""

    model_config = RESPONSE

    job: UUID


class AuditEntry(BaseModel):
    """An action of a person or a client."""

    model_config = RESPONSE

    at: AwareDatetime
    actor: str | None
    client_id: str | None
    action: str = Field(examples=["redrive"])
    object: str | None = Field(examples=["callbacks"])
    detail: dict[str, Any]
    result: str = Field(examples=["started"])
