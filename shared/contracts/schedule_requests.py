"""The operations of the scheduler over AMQP, with the models of their requests and responses.

`RESCHEDULE_CALLBACK` and `CANCEL_CALLBACKS` have the bodies of the messages in schedules.py.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from shared.contracts.requests import Failure, RpcOperation
from shared.contracts.schedules import (
    STRICT,
    CancelCallback,
    EventKey,
    GroupKey,
    Id,
    Key,
    Moment,
    RescheduleCallback,
    ScheduleCallback,
    Status,
    check_selector,
)
from shared.topology import SCHEDULER_REQUESTS

MAX_BATCH_SIZE: Final = 1000
MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100

_ANSWER: Final = ConfigDict(frozen=True, extra="forbid")


class CreateCallback(BaseModel):
    """Operation: create an event. A repeat under the same idempotency key changes nothing."""

    model_config = STRICT

    callback: ScheduleCallback
    idempotency_key: Key | None = None


class CreateCallbacks(BaseModel):
    """Operation: create several events; each is a ScheduleCallback and is answered by itself."""

    model_config = STRICT

    callbacks: Annotated[list[Any], Field(min_length=1, max_length=MAX_BATCH_SIZE)]


class GetCallback(BaseModel):
    """Operation: an event's status, by id or by keys."""

    model_config = STRICT

    id: Id = None
    group_key: GroupKey = None
    event_key: EventKey = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        check_selector(self.id, self.group_key, self.event_key)
        return self


class ListCallbacks(BaseModel):
    """Operation: events of the client, newest first, a page at a time."""

    model_config = STRICT

    group_key: Key | None = None
    event_key: Key | None = None
    status: Status | None = None
    cursor: Annotated[str, StringConstraints(max_length=255)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = DEFAULT_PAGE_SIZE


class RetryCallbacks(BaseModel):
    """Operation: start failed events again; with no field named, all of the client's."""

    model_config = STRICT

    id: Id = None
    group_key: Key | None = None
    failed_after: Moment | None = None
    failed_before: Moment | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = MAX_PAGE_SIZE
    dry_run: bool = Field(default=False, description="Only say which they are.")


class CallbackCreated(BaseModel):
    """An event that was accepted, now or by an earlier, equal request."""

    model_config = _ANSWER

    id: UUID
    status: Status
    run_at: AwareDatetime


class RejectedItem(BaseModel):
    """A callback of a batch that was not accepted."""

    model_config = _ANSWER

    error: Failure


class CallbacksCreated(BaseModel):
    """An answer for each callback of a batch, in its order."""

    model_config = _ANSWER

    items: list[CallbackCreated | RejectedItem]


class CallbackStatus(BaseModel):
    """What is known of an event."""

    model_config = _ANSWER

    id: UUID
    status: Status
    run_at: AwareDatetime = Field(description="When it is, or was, due.")
    next_at: AwareDatetime | None = Field(description="The next try, where one is planned.")
    attempts: int = Field(description="Tries made since it was last due.")
    last_error: str | None
    group_key: str | None
    event_key: str | None
    context: Any
    occurrence: int | None = Field(description="Of a recurring one: which it is, from 1.")
    created_at: AwareDatetime
    finished_at: AwareDatetime | None


class CallbackPage(BaseModel):
    """A page of events; `next_cursor` leads to the next one."""

    model_config = _ANSWER

    items: list[CallbackStatus]
    next_cursor: str | None


class CancelResult(StrEnum):
    """What became of the wish to cancel."""

    CANCELLED = "cancelled"  # also when it was before
    IN_FLIGHT = "in_flight"  # on its way to the receiver; no main retry will follow
    ALREADY_NOTIFIED = "already_notified"
    ALREADY_FAILED = "already_failed"
    NOT_FOUND = "not_found"


class RescheduleResult(StrEnum):
    """What became of the wish to reschedule."""

    RESCHEDULED = "rescheduled"
    IN_FLIGHT = "in_flight"  # on its way to the receiver; nothing was changed
    ALREADY_NOTIFIED = "already_notified"
    ALREADY_FAILED = "already_failed"
    ALREADY_CANCELLED = "already_cancelled"
    NOT_FOUND = "not_found"


class CancelResponse(BaseModel):
    """What became of one event; `id` is None where it was not found."""

    model_config = _ANSWER

    id: UUID | None
    result: CancelResult


class CancelGroupResponse(BaseModel):
    """What became of a group: all are counted, the first thousand are named."""

    model_config = _ANSWER

    items: list[CancelResponse]
    counts: dict[CancelResult, int]


class RescheduleResponse(BaseModel):
    """What became of one event, and when it is due now; None where it was not found."""

    model_config = _ANSWER

    id: UUID | None
    result: RescheduleResult
    run_at: AwareDatetime | None


class RetryResponse(BaseModel):
    """The failed events that were started again, or would be."""

    model_config = _ANSWER

    count: int
    ids: list[UUID]


class Pong(BaseModel):
    """Whether the scheduler can work: `ready`, or why not."""

    model_config = _ANSWER

    status: str


class Ping(BaseModel):
    """Operation: report whether the scheduler is ready."""

    model_config = STRICT


CREATE_CALLBACK: Final = RpcOperation(
    SCHEDULER_REQUESTS, "CreateCallback", CreateCallback, (CallbackCreated,)
)
CREATE_CALLBACKS: Final = RpcOperation(
    SCHEDULER_REQUESTS, "CreateCallbacks", CreateCallbacks, (CallbacksCreated,)
)
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

SCHEDULER_OPERATIONS: Final = (
    CREATE_CALLBACK,
    CREATE_CALLBACKS,
    GET_CALLBACK,
    LIST_CALLBACKS,
    RESCHEDULE_CALLBACK,
    CANCEL_CALLBACKS,
    RETRY_CALLBACKS,
    PING,
)
