"""The operations that read figures of the journal: targets and the overview.

Only operators may call them.
"""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, Field, StringConstraints

from shared.contracts.callback import ClientId
from shared.contracts.journal import (
    DEFAULT_PAGE_SIZE,
    RESPONSE,
    Gap,
    Limit,
    Origin,
    SpanTime,
)
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE
from shared.topology import JOURNAL_REQUESTS

# Minutes of all targets, and of one target. More would take longer than a page may. With 200
# targets, three hours are 36,000 rows.
MAX_MINUTES: Final = 180
MAX_TARGET_MINUTES: Final = 1440
DEFAULT_MINUTES: Final = 60
MAX_CURSOR: Final = 512

Minutes = Annotated[int, Field(ge=1, le=MAX_MINUTES)]


class ListTargets(BaseModel):
    """List targets with their health, those with the most errors first."""

    model_config = ENVELOPE

    minutes: Minutes = Field(default=DEFAULT_MINUTES, description="Length of the span until now.")
    client_id: ClientId | None = None
    # A cursor contains a target.
    cursor: Annotated[str, StringConstraints(max_length=MAX_CURSOR)] | None = None
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
    breaker_open: bool = Field(description="Whether the breaker of a process is open.")
    lane_full: bool = Field(
        description="Whether a process has deferred callbacks in the last minute, because its lane"
        " to the target was full."
    )


class TargetPage(BaseModel):
    """A page of targets. `next_cursor` is null on the last page."""

    model_config = RESPONSE

    items: list[TargetHealth]
    next_cursor: str | None


class ReadTarget(BaseModel):
    """Read the health of a target by minute. A target without attempts has no minutes."""

    model_config = ENVELOPE

    target: Origin
    minutes: Annotated[int, Field(ge=1, le=MAX_TARGET_MINUTES)] = Field(
        default=DEFAULT_MINUTES, description="Length of the span."
    )
    until: SpanTime | None = Field(default=None, description="End of the span. Default: now.")
    client_id: ClientId | None = None


class MinuteFigures(BaseModel):
    """The attempts of one minute."""

    model_config = RESPONSE

    at: AwareDatetime
    delivered: int
    failed: int
    p50: float | None
    p99: float | None


class Breaker(BaseModel):
    """An open circuit breaker in one process of the callback service."""

    model_config = RESPONSE

    target: str
    client_id: str | None
    process: str
    opened_at: AwareDatetime
    until: AwareDatetime = Field(description="Time of the next probe.")


class FullLane(BaseModel):
    """A lane that was full in one process of the callback service, at its last report."""

    model_config = RESPONSE

    target: str
    client_id: str | None
    process: str
    reason: str = Field(description="Why callbacks were deferred.")
    in_flight: int = Field(description="Number of requests in flight.")
    limit: int = Field(description="Number of requests in flight that the lane allowed.")
    at: AwareDatetime


class TargetDetail(BaseModel):
    """A target with its attempts by minute, the first one first. Minutes without are left out."""

    model_config = RESPONSE

    health: TargetHealth
    minutes: list[MinuteFigures]
    breakers: list[Breaker]
    full_lanes: list[FullLane] = Field(description="Those of the last minute.")


class ReadOverview(BaseModel):
    """Read the figures of the overview. They are at most a few seconds old."""

    model_config = ENVELOPE

    minutes: Minutes = Field(default=DEFAULT_MINUTES, description="Length of the span until now.")


class QueueFigures(BaseModel):
    """Messages in a work queue, its tiers and its dead-letter queue."""

    model_config = RESPONSE

    queue: str
    waiting: int
    tiers: dict[str, int] = Field(description="Messages by tier, the shortest first.")
    dead: int
    consumers: int


class Severity(StrEnum):
    """How urgent a finding is."""

    ERROR = "error"  # messages are not delivered
    WARNING = "warning"


class Finding(BaseModel):
    """Something that is wrong, and what to do."""

    model_config = RESPONSE

    severity: Severity
    problem: str
    action: str


class Overview(BaseModel):
    """The state of the whole system. What could not be read is null, and is among the findings."""

    model_config = RESPONSE

    at: AwareDatetime
    delivered: int = Field(description="Attempts in the span.")
    failed: int
    p50: float | None
    p99: float | None
    minutes: list[MinuteFigures]
    targets: list[TargetHealth] = Field(description="The targets with the most errors.")
    queues: list[QueueFigures] | None
    waiting: int | None = Field(description="Scheduled callbacks that wait for their time.")
    due: int | None = Field(description="Scheduled callbacks that are due and not dispatched.")
    oldest_due: float | None = Field(description="Seconds for which the oldest of them is due.")
    breakers: list[Breaker]
    paused_targets: list[str]
    running_jobs: int
    lag: float | None = Field(description="Seconds that the journal is behind.")
    gaps: list[Gap] = Field(description="Those of the last day.")
    findings: list[Finding] = Field(description="The most urgent first.")


LIST_TARGETS: Final = RpcOperation(JOURNAL_REQUESTS, "ListTargets", ListTargets, (TargetPage,))
READ_TARGET: Final = RpcOperation(JOURNAL_REQUESTS, "ReadTarget", ReadTarget, (TargetDetail,))
READ_OVERVIEW: Final = RpcOperation(JOURNAL_REQUESTS, "ReadOverview", ReadOverview, (Overview,))

TARGET_OPERATIONS: Final = (LIST_TARGETS, READ_TARGET)
OVERVIEW_OPERATIONS: Final = (READ_OVERVIEW,)
