"""The requests on the queue `scheduler.requests`: from bodies to operations and to answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel
from pydantic_core import to_json

from services.scheduler.intake import Intake, KeyUsed, OtherOrder, event_of_key
from services.scheduler.operations import Operations
from shared.amqp.parsing import parse_request
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure, FailureCode, FieldError, RpcOperation
from shared.contracts.schedule_requests import (
    CANCEL_CALLBACKS,
    CREATE_CALLBACK,
    CREATE_CALLBACKS,
    GET_CALLBACK,
    LIST_CALLBACKS,
    PING,
    RESCHEDULE_CALLBACK,
    RETRY_CALLBACKS,
    CallbackCreated,
    CallbacksCreated,
    CreateCallback,
    CreateCallbacks,
    Pong,
    RejectedItem,
)
from shared.contracts.schedules import ScheduleCallback

B = TypeVar("B", bound=BaseModel)
Answer = BaseModel | Failure
Handler = Callable[[RequestContext, bytes], Awaitable[Answer]]

# Requests that use a connection of their own at a time; creations share the intake's.
SIDE_BY_SIDE: Final = 4
KEYS_USED: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="there is a callback with this group_key and event_key already",
    errors=(FieldError(field="event_key", message="is used already in this group"),),
)
OTHER_ORDER: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="another callback was created under this idempotency key",
)


class Requests:
    """Answers requests. `fault` says why the scheduler is not ready, if it is not.

    Without `anonymous`, callers that show no ticket are refused.
    """

    def __init__(
        self,
        intake: Intake,
        operations: Operations,
        *,
        fault: Callable[[], str | None],
        anonymous: bool,
    ) -> None:
        self._intake = intake
        self._operations = operations
        self._fault = fault
        self._anonymous = anonymous
        self._places = asyncio.Semaphore(SIDE_BY_SIDE)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        operations = self._operations
        return dict(
            (
                self._bound(CREATE_CALLBACK, self._create, within="callback"),
                self._bound(CREATE_CALLBACKS, self._create_batch),
                self._bound(GET_CALLBACK, self._alone(operations.get)),
                self._bound(LIST_CALLBACKS, self._alone(operations.page)),
                self._bound(RESCHEDULE_CALLBACK, self._alone(operations.reschedule)),
                self._bound(CANCEL_CALLBACKS, self._alone(operations.cancel)),
                self._bound(RETRY_CALLBACKS, self._alone(operations.retry)),
                (PING.name, self._ping),
            )
        )

    def _bound(
        self,
        operation: RpcOperation[B],
        respond: Callable[[RequestContext, B], Awaitable[Answer]],
        *,
        within: str = "",
    ) -> tuple[str, Handler]:
        async def handle(context: RequestContext, body: bytes) -> Answer:
            if context.client_id is None and not self._anonymous:
                return Failure(code=FailureCode.FORBIDDEN, detail="a service ticket is needed")
            order = parse_request(operation.request, body, within=within)
            if isinstance(order, Failure):
                return order
            return await respond(context, order)

        return operation.name, handle

    def _alone(
        self, operation: Callable[[str, B], Awaitable[Answer]]
    ) -> Callable[[RequestContext, B], Awaitable[Answer]]:
        async def bounded(context: RequestContext, parse_request: B) -> Answer:
            async with self._places:
                return await operation(context.client_id or "", parse_request)

        return bounded

    async def _create(self, context: RequestContext, parse_request: CreateCallback) -> Answer:
        key = parse_request.idempotency_key
        event_id = uuid4() if key is None else event_of_key(context.client_id or "", key)
        return await self._taken(
            context, parse_request.callback, event_id, fingerprinted=key is not None
        )

    async def _taken(
        self,
        context: RequestContext,
        order: ScheduleCallback,
        event_id: UUID,
        *,
        fingerprinted: bool,
    ) -> CallbackCreated | Failure:
        taken = await self._intake.create(
            order,
            context.client_id or "",
            event_id,
            fingerprinted=fingerprinted,
            traceparent=context.traceparent,
        )
        if isinstance(taken, KeyUsed):
            return KEYS_USED
        if isinstance(taken, OtherOrder):
            return OTHER_ORDER
        return taken

    async def _create_batch(self, context: RequestContext, wanted: CreateCallbacks) -> Answer:
        async def one(callback: Any) -> CallbackCreated | RejectedItem:
            order = parse_request(ScheduleCallback, to_json(callback))
            if not isinstance(order, Failure):
                taken = await self._taken(context, order, uuid4(), fingerprinted=False)
                if isinstance(taken, CallbackCreated):
                    return taken
                return RejectedItem(error=taken)
            return RejectedItem(error=order)

        return CallbacksCreated(items=await asyncio.gather(*map(one, wanted.callbacks)))

    async def _ping(self, _: RequestContext, __: bytes) -> Answer:
        return Pong(status=self._fault() or "ready")
