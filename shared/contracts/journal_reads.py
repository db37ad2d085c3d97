"""The operations that read the journal, with their requests and responses.

Clients see only their own callbacks. Another client's are `not_found`. Operators see all.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, Field

from shared.contracts.callback import ClientId
from shared.contracts.journal import (
    DEFAULT_PAGE_SIZE,
    RESPONSE,
    Attempt,
    AttemptOutcome,
    AuditEntry,
    Cursor,
    Entry,
    EntryKind,
    Gap,
    Limit,
    Origin,
    SearchText,
)
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE, Key, UtcTime
from shared.topology import JOURNAL_REQUESTS

# Entries of one callback in a response. One that recurs for years has more.
MAX_TIMELINE: Final = 1000

CallbackRef = Annotated[
    SearchText, Field(description="The id of the scheduled callback, or the `webhook-id`.")
]


class ListAttempts(BaseModel):
    """Search attempts, the latest first. All given fields must match."""

    model_config = ENVELOPE

    target: Origin | None = None
    status: SearchText | None = Field(
        default=None, description="An outcome, such as `failed`, or a status code, such as `503`."
    )
    reason: SearchText | None = None
    trace_id: SearchText | None = None
    group_key: Key | None = None
    event_key: Key | None = None
    client_id: ClientId | None = Field(default=None, description="Only for operators.")
    since: UtcTime | None = None
    until: UtcTime | None = None
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_PAGE_SIZE


class AttemptList(BaseModel):
    """A page of attempts. `next_cursor` is null on the last page."""

    model_config = RESPONSE

    items: list[Attempt]
    next_cursor: str | None


class ReadAttempts(BaseModel):
    """List the attempts of one callback, the first one first."""

    model_config = ENVELOPE

    id: CallbackRef
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_PAGE_SIZE


class ReadTimeline(BaseModel):
    """Read the story of one callback."""

    model_config = ENVELOPE

    id: CallbackRef


class StepKind(StrEnum):
    """What a step of a timeline is about."""

    SCHEDULED = "scheduled"
    RESCHEDULED = "rescheduled"
    DISPATCHED = "dispatched"
    ATTEMPT = "attempt"
    TIER = "tier"  # waits for the next attempt, until `until`
    RETRY = "retry"  # waits in the scheduler for a main retry, until `until`
    NOTIFIED = "notified"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"
    REPLAYED = "replayed"
    REDRIVEN = "redriven"
    DISCARDED = "discarded"


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
    steps: list[Step]
    truncated: bool = Field(description=f"True if only the last {MAX_TIMELINE} entries are shown.")
    kept: bool = Field(description="Whether its request is kept, so that it can be replayed.")
    gaps: list[Gap] = Field(description="Facts that were missed in its time.")


class ListTargets(BaseModel):
    """List targets with their health, those with the most errors first."""

    model_config = ENVELOPE

    since: UtcTime | None = Field(default=None, description="Default: an hour ago.")
    limit: Limit = DEFAULT_PAGE_SIZE


class TargetHealth(BaseModel):
    """A target with its attempts in a span of time."""

    model_config = RESPONSE

    target: str
    delivered: int
    failed: int
    p50: float | None = Field(description="Median duration in seconds.")
    p99: float | None = Field(description="99th percentile of the duration in seconds.")
    paused: bool
    breaker_open: bool


class TargetList(BaseModel):
    """Targets with their health."""

    model_config = RESPONSE

    items: list[TargetHealth]


class ReadTarget(BaseModel):
    """Read the health of a target by minute."""

    model_config = ENVELOPE

    target: Origin
    since: UtcTime | None = Field(default=None, description="Default: an hour ago.")
    until: UtcTime | None = None


class TargetMinute(BaseModel):
    """The attempts of one minute."""

    model_config = RESPONSE

    at: AwareDatetime
    delivered: int
    failed: int
    p50: float | None
    p99: float | None


class TargetDetail(BaseModel):
    """A target with its attempts by minute, the first minute first."""

    model_config = RESPONSE

    health: TargetHealth
    minutes: list[TargetMinute]


class ReadOverview(BaseModel):
    """Read the figures of the overview."""

    model_config = ENVELOPE

    minutes: Annotated[int, Field(ge=1, le=1440)] = 60


class Overview(BaseModel):
    """Attempts by minute, open breakers, dead letters by queue, and the journal's own state."""

    model_config = RESPONSE

    minutes: list[TargetMinute]
    open_breakers: list[str]
    paused_targets: list[str]
    dead: dict[str, int]
    running_jobs: int
    lag: float | None = Field(description="Seconds that the journal is behind.")
    gaps: list[Gap]


class Tail(BaseModel):
    """Read entries that were recorded after `seq`, the first one first."""

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
    seq: int


class ListAudit(BaseModel):
    """List actions, the latest first."""

    model_config = ENVELOPE

    actor: SearchText | None = None
    action: SearchText | None = None
    since: UtcTime | None = None
    until: UtcTime | None = None
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
READ_ATTEMPTS: Final = RpcOperation(JOURNAL_REQUESTS, "ReadAttempts", ReadAttempts, (AttemptList,))
READ_TIMELINE: Final = RpcOperation(JOURNAL_REQUESTS, "ReadTimeline", ReadTimeline, (Timeline,))
TAIL: Final = RpcOperation(JOURNAL_REQUESTS, "Tail", Tail, (TailPage,))
LIST_TARGETS: Final = RpcOperation(JOURNAL_REQUESTS, "ListTargets", ListTargets, (TargetList,))
READ_TARGET: Final = RpcOperation(JOURNAL_REQUESTS, "ReadTarget", ReadTarget, (TargetDetail,))
READ_OVERVIEW: Final = RpcOperation(JOURNAL_REQUESTS, "ReadOverview", ReadOverview, (Overview,))
LIST_AUDIT: Final = RpcOperation(JOURNAL_REQUESTS, "ListAudit", ListAudit, (AuditPage,))
RECORD_AUDIT: Final = RpcOperation(JOURNAL_REQUESTS, "RecordAudit", RecordAudit, (Recorded,))

ATTEMPT_OPERATIONS: Final = (LIST_ATTEMPTS, READ_ATTEMPTS, READ_TIMELINE, TAIL)
TARGET_OPERATIONS: Final = (LIST_TARGETS, READ_TARGET, READ_OVERVIEW)
AUDIT_OPERATIONS: Final = (LIST_AUDIT, RECORD_AUDIT)
