"""Handles the requests of the queue `scheduler.requests`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from itertools import starmap
from typing import Any, Final, TypeVar
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import to_json

from services.scheduler.domain import PreconditionFailedError
from services.scheduler.due_times import DueTimes
from services.scheduler.intake import (
    IdempotencyConflict,
    Intake,
    KeyUsed,
    fingerprint,
    id_of_request,
)
from services.scheduler.operations import Operations
from shared.amqp.parsing import parse_request
from shared.amqp.publisher import new_id
from shared.amqp.rpc import RequestContext, failure_of
from shared.contracts.requests import Failure, FailureCode, FieldError, RpcOperation
from shared.contracts.schedule_changes import CancelCallback
from shared.contracts.schedule_requests import (
    CANCEL_CALLBACKS,
    COUNT_DUE,
    CREATE_CALLBACK,
    CREATE_CALLBACKS,
    GET_CALLBACK,
    LIST_CALLBACKS,
    LIST_OCCURRENCES,
    PING,
    PUT_CALLBACK,
    READ_BACKLOG,
    RESCHEDULE_CALLBACK,
    RETRY_CALLBACKS,
    RUN_CALLBACK,
    CallbackCreated,
    CallbackPut,
    CallbacksCreated,
    CountDue,
    CreateCallback,
    CreateCallbacks,
    Pong,
    PutCallback,
    RejectedItem,
)
from shared.contracts.schedules import ScheduleCallback
from shared.errors import InfrastructureError
from shared.resilience.turns import Turns

B = TypeVar("B", bound=BaseModel)
Response = BaseModel | Failure
Handler = Callable[[RequestContext, bytes], Awaitable[Response]]

# Requests that may use a database connection at the same time. Creations use the intake's.
MAX_CONCURRENT: Final = 4
# Counts at a time. One reads up to 60,000 entries of an index, for a page that people look at. It
# must not delay the requests of clients.
MAX_COUNTS: Final = 1
# Counts that wait for their turn, enough for ten pages. Further ones fail at once as unavailable,
# because each holds a place in the prefetch window.
MAX_WAITING_COUNTS: Final = 20
# The codes of all items of a batch that was not carried out at all.
_NOTHING_DONE: Final = {FailureCode.UNAVAILABLE}
KEY_USED: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="a callback with this group_key and event_key already exists",
    errors=(FieldError(field="event_key", message="is already used in this group"),),
)
NOT_WAITING: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="the callback cannot be replaced: it is being delivered, or has ended",
)
IDEMPOTENCY_CONFLICT: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="this idempotency key was used before with a different callback",
)


class Requests:
    """Responds to requests.

    fault: returns why the scheduler is not ready, or None.
    anonymous: whether clients without a ticket are served.
    """

    def __init__(
        self,
        intake: Intake,
        operations: Operations,
        due_times: DueTimes,
        *,
        fault: Callable[[], str | None],
        anonymous: bool,
    ) -> None:
        self._intake = intake
        self._operations = operations
        self._due_times = due_times
        self._fault = fault
        self._anonymous = anonymous
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._counts = Turns(MAX_COUNTS, waiting=MAX_WAITING_COUNTS)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        operations = self._operations
        return dict(
            (
                self._handler(CREATE_CALLBACK, self._create, within="callback"),
                self._handler(CREATE_CALLBACKS, self._create_batch),
                self._handler(PUT_CALLBACK, self._put, within="callback"),
                self._handler(RUN_CALLBACK, self._limited(operations.run)),
                self._handler(GET_CALLBACK, self._limited(operations.get)),
                self._handler(LIST_CALLBACKS, self._limited(operations.list_page)),
                self._handler(RESCHEDULE_CALLBACK, self._limited(operations.reschedule)),
                self._handler(CANCEL_CALLBACKS, self._cancel),
                self._handler(RETRY_CALLBACKS, self._limited(operations.retry)),
                self._handler(READ_BACKLOG, self._limited(operations.backlog)),
                self._handler(COUNT_DUE, self._count_due),
                self._handler(LIST_OCCURRENCES, self._limited(self._due_times.occurrences)),
                (PING.name, self._ping),
            )
        )

    def _handler(
        self,
        operation: RpcOperation[B],
        respond: Callable[[RequestContext, B], Awaitable[Response]],
        *,
        within: str = "",
    ) -> tuple[str, Handler]:
        async def handle(context: RequestContext, body: bytes) -> Response:
            if context.client_id is None and not self._anonymous:
                return Failure(code=FailureCode.FORBIDDEN, detail="a service ticket is required")
            request = parse_request(operation.request, body, within=within)
            if isinstance(request, Failure):
                return request
            try:
                return await respond(context, request)
            except PreconditionFailedError as error:
                return Failure(code=FailureCode.PRECONDITION_FAILED, detail=str(error))

        return operation.name, handle

    def _limited(
        self, operation: Callable[[str, B], Awaitable[Response]]
    ) -> Callable[[RequestContext, B], Awaitable[Response]]:
        async def execute(context: RequestContext, request: B) -> Response:
            async with self._slots:
                return await operation(context.client_id or "", request)

        return execute

    async def _count_due(self, context: RequestContext, request: CountDue) -> Response:
        async with self._counts.turn():
            return await self._due_times.count(context.client_id or "", request)

    async def _create(self, context: RequestContext, request: CreateCallback) -> Response:
        key = request.idempotency_key
        id_ = id_of_request(context.client_id or "", key, context.message_id or new_id())
        return await self._create_one(context, request.callback, id_, fingerprinted=key is not None)

    async def _create_one(
        self,
        context: RequestContext,
        command: ScheduleCallback,
        id_: UUID,
        *,
        fingerprinted: bool,
    ) -> CallbackCreated | Failure:
        result = await self._intake.create(
            command,
            context.client_id or "",
            id_,
            fingerprint=fingerprint(command) if fingerprinted else None,
            traceparent=context.traceparent,
        )
        if isinstance(result, KeyUsed):
            return KEY_USED
        if isinstance(result, IdempotencyConflict):
            return IDEMPOTENCY_CONFLICT
        return result

    async def _create_batch(self, context: RequestContext, request: CreateCallbacks) -> Response:
        client_id, key = context.client_id or "", request.idempotency_key
        message_id = context.message_id or new_id()

        async def create(index: int, callback: Any) -> CallbackCreated | RejectedItem:
            body = to_json(callback)
            if too_long := self._intake.size_error(callback, body):
                return RejectedItem(error=too_long)
            command = parse_request(ScheduleCallback, body)
            if isinstance(command, Failure):
                return RejectedItem(error=command)
            id_ = id_of_request(client_id, key, message_id, index)
            try:
                result = await self._create_one(
                    context, command, id_, fingerprinted=key is not None
                )
            except InfrastructureError as error:
                result = failure_of(error)
            return RejectedItem(error=result) if isinstance(result, Failure) else result

        items = await asyncio.gather(*starmap(create, enumerate(request.callbacks)))
        failures = [item.error for item in items if isinstance(item, RejectedItem)]
        if len(failures) == len(items) and {each.code for each in failures} == _NOTHING_DONE:
            return failures[0]
        return CallbacksCreated(items=items)

    async def _put(self, context: RequestContext, request: PutCallback) -> Response:
        client_id, command = context.client_id or "", request.callback
        if request.if_match is None:
            id_ = id_of_request(client_id, None, context.message_id or new_id())
            created = await self._create_one(context, command, id_, fingerprinted=False)
            if isinstance(created, CallbackCreated):
                return CallbackPut(**created.model_dump(), created=True)
            if created is not KEY_USED:
                return created
            if request.create_only:
                raise PreconditionFailedError("a callback with these keys exists")
        async with self._slots:
            existing = await self._operations.find(client_id, command)
            if existing is None:
                raise PreconditionFailedError("the callback does not exist")
            new = await self._intake.prepare(
                command, client_id, existing, traceparent=context.traceparent
            )
            if isinstance(new, Failure):
                return new
            after = await self._operations.replace(new, request.if_match)
        if after is None:
            return NOT_WAITING
        return CallbackPut(id=after.id, status=after.status, run_at=after.run_at, created=False)

    async def _cancel(self, context: RequestContext, request: CancelCallback) -> Response:
        client_id = context.client_id or ""
        if request.whole_group:
            return await self._operations.cancel_group(client_id, request)
        async with self._slots:
            return await self._operations.cancel(client_id, request)

    async def _ping(self, _: RequestContext, __: bytes) -> Response:
        return Pong(status=self._fault() or "ready")
