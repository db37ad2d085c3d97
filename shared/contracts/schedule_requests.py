"""The operations of the scheduler over AMQP, with the models of their requests and responses.

`RESCHEDULE_CALLBACK` and `CANCEL_CALLBACKS` have the bodies of the messages in schedules.py.
"""

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from shared.contracts.context import fields_error
from shared.contracts.requests import Failure, RpcOperation
from shared.contracts.schedule_changes import CancelCallback, RescheduleCallback, check_selector
from shared.contracts.schedules import (
    ENVELOPE,
    STRICT,
    EventKey,
    GroupKey,
    Id,
    IfMatch,
    Key,
    ScheduleCallback,
    Status,
    UtcTime,
)
from shared.topology import SCHEDULER_REQUESTS

MAX_BATCH_SIZE: Final = 1000
MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100
# Bounds of 60 spans: more than the hours of two days, or the days of a month.
MAX_DUE_BOUNDS: Final = 61

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")


class CreateCallback(BaseModel):
    """Create a callback. A repeat with the same idempotency key has no effect."""

    model_config = ENVELOPE

    callback: ScheduleCallback
    idempotency_key: Key | None = None


class CreateCallbacks(BaseModel):
    """Create several callbacks. Each is a ScheduleCallback and has its own result.

    A repeat with the same idempotency key creates only those that the first request did not.
    """

    model_config = STRICT

    callbacks: Annotated[list[Any], Field(min_length=1, max_length=MAX_BATCH_SIZE)]
    idempotency_key: Key | None = None


class PutCallback(BaseModel):
    """Create the callback with these keys, or replace it while it waits."""

    model_config = ENVELOPE

    callback: ScheduleCallback
    if_match: IfMatch = None
    create_only: bool = Field(default=False, description="Fail if the callback exists.")

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if self.callback.event_key is None:
            raise fields_error([("event_key", "Field required")])
        return self


class RunCallback(BaseModel):
    """Send a waiting callback now, instead of at its due time or its next main retry."""

    model_config = ENVELOPE

    id: UUID
    if_match: IfMatch = None


class GetCallback(BaseModel):
    """Get the status of a callback by id or keys."""

    model_config = ENVELOPE

    id: Id = None
    group_key: GroupKey = None
    event_key: EventKey = None

    @model_validator(mode="after")
    def _check_selector(self) -> Self:
        check_selector(self.id, self.group_key, self.event_key)
        return self


class ListCallbacks(BaseModel):
    """List the client's callbacks, newest first."""

    model_config = ENVELOPE

    group_key: Key | None = None
    event_key: Key | None = None
    status: Status | None = None
    cursor: Annotated[str, StringConstraints(max_length=255)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = DEFAULT_PAGE_SIZE


class RetryCallbacks(BaseModel):
    """Make failed callbacks due now: those that the filters select, or all of the client."""

    model_config = STRICT

    all: bool = Field(default=False, description="Required if there is no filter.")
    id: Id = None
    group_key: Key | None = None
    failed_after: UtcTime | None = None
    failed_before: UtcTime | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = MAX_PAGE_SIZE
    dry_run: bool = Field(default=False, description="Only list them.")

    @model_validator(mode="after")
    def _check_filter(self) -> Self:
        filters = (self.id, self.group_key, self.failed_after, self.failed_before)
        if self.all == any(each is not None for each in filters):
            raise fields_error([("all", "set either `all`, or at least one filter")])
        return self


class CallbackCreated(BaseModel):
    """A callback that was created by this request or by an equal one before it."""

    model_config = _RESPONSE

    id: UUID
    status: Status
    run_at: AwareDatetime


class CallbackPut(CallbackCreated):
    """A callback that was created, or replaced if `created` is false."""

    created: bool


class RejectedItem(BaseModel):
    """A callback of a batch that was rejected."""

    model_config = _RESPONSE

    error: Failure


class CallbacksCreated(BaseModel):
    """The results of a batch, in its order."""

    model_config = _RESPONSE

    items: list[CallbackCreated | RejectedItem]


class Repetition(BaseModel):
    """How a callback recurs: the `repeat` of its request."""

    model_config = _RESPONSE

    every: float | None = Field(description="Seconds between two due times.")
    cron: str | None
    timezone: str | None = Field(description="IANA time zone of `cron`.")
    until: AwareDatetime | None
    count: int | None = Field(description="Maximum number of occurrences.")


class CallbackStatus(BaseModel):
    """The status of a callback."""

    model_config = _RESPONSE

    id: UUID
    status: Status
    run_at: AwareDatetime = Field(description="Due time of the current or last occurrence.")
    next_at: AwareDatetime | None = Field(
        description="Time of the next attempt, if one is planned."
    )
    attempts: int = Field(description="Attempts since it was last due.")
    last_error: str | None
    group_key: str | None
    event_key: str | None
    context: Any
    occurrence: int | None = Field(description="Number of the occurrence, from 1, if it recurs.")
    repeat: Repetition | None = Field(description="How it recurs, if it does.")
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    etag: str = Field(description="Changes with the state; for `If-Match`.")


class CallbackPage(BaseModel):
    """A page of callbacks. `next_cursor` is null on the last page."""

    model_config = _RESPONSE

    items: list[CallbackStatus]
    next_cursor: str | None


class CancelResult(StrEnum):
    """Result of a cancellation."""

    CANCELLED = "cancelled"  # also if it was cancelled before
    IN_FLIGHT = "in_flight"  # its attempt and quick retries continue; no main retry follows
    ALREADY_NOTIFIED = "already_notified"
    ALREADY_FAILED = "already_failed"
    NOT_FOUND = "not_found"


class RescheduleResult(StrEnum):
    """Result of a reschedule."""

    RESCHEDULED = "rescheduled"
    CHANGED = "changed"  # without a new due time
    IN_FLIGHT = "in_flight"  # being dispatched; nothing was changed
    ALREADY_NOTIFIED = "already_notified"
    ALREADY_FAILED = "already_failed"
    ALREADY_CANCELLED = "already_cancelled"
    NOT_FOUND = "not_found"


class RunResult(StrEnum):
    """Result of a request to send a callback now."""

    STARTED = "started"
    IN_FLIGHT = "in_flight"  # being dispatched already
    ALREADY_NOTIFIED = "already_notified"
    ALREADY_FAILED = "already_failed"
    ALREADY_CANCELLED = "already_cancelled"
    NOT_FOUND = "not_found"


class RunResponse(BaseModel):
    """Result of a request to send a callback now."""

    model_config = _RESPONSE

    id: UUID | None
    result: RunResult


class CancelResponse(BaseModel):
    """Result for one callback. `id` is null if it was not found."""

    model_config = _RESPONSE

    id: UUID | None
    result: CancelResult


class CancelGroupResponse(BaseModel):
    """Result for a group: counts of all callbacks, and the results of the first 1,000.

    A large group takes several requests. Each contains `next_cursor` of the response before; it is
    null in the last response.
    """

    model_config = _RESPONSE

    items: list[CancelResponse]
    counts: dict[CancelResult, int]
    next_cursor: str | None = None


class RescheduleResponse(BaseModel):
    """Result for one callback, with its due time. `id` is null if it was not found."""

    model_config = _RESPONSE

    id: UUID | None
    result: RescheduleResult
    run_at: AwareDatetime | None


class RetryResponse(BaseModel):
    """Failed callbacks that are due again, or would be with `dry_run` off."""

    model_config = _RESPONSE

    count: int
    ids: list[UUID]


class Pong(BaseModel):
    """Readiness of the scheduler: `ready`, or the reason why not."""

    model_config = _RESPONSE

    status: str


class ReadBacklog(BaseModel):
    """Count the callbacks of all clients that wait. For the overview of the journal."""

    model_config = ENVELOPE


class BacklogFigures(BaseModel):
    """The callbacks of all clients that wait. Large numbers are estimates."""

    model_config = _RESPONSE

    waiting: int
    due: int = Field(description="Those that are due.")
    oldest_due: float = Field(description="Seconds for which the oldest of them is due, or 0.")


class CountDue(BaseModel):
    """Count the client's callbacks that wait, by the time of their next attempt."""

    model_config = ENVELOPE

    bounds: Annotated[list[UtcTime], Field(min_length=2, max_length=MAX_DUE_BOUNDS)] = Field(
        description="Ascending times. From each to the next one is a span."
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if any(bound >= following for bound, following in pairwise(self.bounds)):
            raise fields_error([("bounds", "must ascend")])
        return self


class DueCount(BaseModel):
    """The callbacks of one span. A recurring callback is counted once, where it is next due."""

    model_config = _RESPONSE

    since: AwareDatetime
    callbacks: int
    estimated: bool = Field(description="Whether there are too many to count them.")


class DueCounts(BaseModel):
    """The callbacks of each span, in their order."""

    model_config = _RESPONSE

    items: list[DueCount]


class ListOccurrences(BaseModel):
    """List when a recurring callback is due, for the next ten occurrences."""

    model_config = ENVELOPE

    id: UUID


class Occurrences(BaseModel):
    """Due times in their order. None if the callback has ended, or does not recur."""

    model_config = _RESPONSE

    items: list[AwareDatetime]


class Ping(BaseModel):
    """Report whether the scheduler is ready."""

    model_config = ENVELOPE


CREATE_CALLBACK: Final = RpcOperation(
    SCHEDULER_REQUESTS, "CreateCallback", CreateCallback, (CallbackCreated,)
)
CREATE_CALLBACKS: Final = RpcOperation(
    SCHEDULER_REQUESTS, "CreateCallbacks", CreateCallbacks, (CallbacksCreated,)
)
PUT_CALLBACK: Final = RpcOperation(SCHEDULER_REQUESTS, "PutCallback", PutCallback, (CallbackPut,))
RUN_CALLBACK: Final = RpcOperation(SCHEDULER_REQUESTS, "RunCallback", RunCallback, (RunResponse,))
GET_CALLBACK: Final = RpcOperation(
    SCHEDULER_REQUESTS, "GetCallback", GetCallback, (CallbackStatus,)
)
LIST_CALLBACKS: Final = RpcOperation(
    SCHEDULER_REQUESTS, "ListCallbacks", ListCallbacks, (CallbackPage,)
)
RESCHEDULE_CALLBACK: Final = RpcOperation(
    SCHEDULER_REQUESTS, "RescheduleCallback", RescheduleCallback, (RescheduleResponse,)
)
CANCEL_CALLBACKS: Final = RpcOperation(
    SCHEDULER_REQUESTS, "CancelCallbacks", CancelCallback, (CancelResponse, CancelGroupResponse)
)
RETRY_CALLBACKS: Final = RpcOperation(
    SCHEDULER_REQUESTS, "RetryCallbacks", RetryCallbacks, (RetryResponse,)
)
PING: Final = RpcOperation(SCHEDULER_REQUESTS, "Ping", Ping, (Pong,))
READ_BACKLOG: Final = RpcOperation(
    SCHEDULER_REQUESTS, "ReadBacklog", ReadBacklog, (BacklogFigures,)
)
COUNT_DUE: Final = RpcOperation(SCHEDULER_REQUESTS, "CountDue", CountDue, (DueCounts,))
LIST_OCCURRENCES: Final = RpcOperation(
    SCHEDULER_REQUESTS, "ListOccurrences", ListOccurrences, (Occurrences,)
)

SCHEDULER_OPERATIONS: Final = (
    CREATE_CALLBACK,
    CREATE_CALLBACKS,
    PUT_CALLBACK,
    RUN_CALLBACK,
    GET_CALLBACK,
    LIST_CALLBACKS,
    RESCHEDULE_CALLBACK,
    CANCEL_CALLBACKS,
    RETRY_CALLBACKS,
    PING,
    READ_BACKLOG,
    COUNT_DUE,
    LIST_OCCURRENCES,
)
