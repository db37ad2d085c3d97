"""The handlers of requests about messages to endpoints. Each caller sees only its own messages."""

import asyncio
import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from services.subscriptions import metrics
from services.subscriptions.endpoints import domain
from services.subscriptions.endpoints.messages import EndpointMessages, IdUsedError, NewMessage
from services.subscriptions.endpoints.requests import INVALID_CURSOR, NOT_FOUND
from services.subscriptions.endpoints.store import Endpoints
from shared.amqp.publisher import new_id
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.endpoint_requests import (
    GET_ENDPOINT_MESSAGE,
    LIST_ENDPOINT_MESSAGES,
    LIST_FAILED_DELIVERIES,
    LIST_MESSAGE_ATTEMPTS,
    SEND_ENDPOINT_MESSAGE,
    AttemptPage,
    DeliveryPage,
    EndpointMessageAccepted,
    GetEndpointMessage,
    ListEndpointMessages,
    ListFailedDeliveries,
    ListMessageAttempts,
    SendEndpointMessage,
)
from shared.contracts.endpoints import Delivery
from shared.contracts.requests import Failure, FailureCode
from shared.resilience.turns import Turns

logger = logging.getLogger(__name__)

MESSAGE_NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="the message does not exist")
ID_USED: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="a message with another event type or payload has this id, or this idempotency key",
)
# Positions before the first attempt, and after the newest delivery.
_FIRST_ATTEMPT: Final = datetime(1970, 1, 1, tzinfo=UTC), 0
_NEWEST: Final = (1 << 63) - 1
# Concurrent lists of what failed at any endpoint. One reads up to 10,000 entries of an index, for a
# page that people look at. It must not delay messages.
MAX_FAILED_LISTS: Final = 1
# Such lists that wait for their turn. Further ones fail at once as unavailable, because each holds
# a place in the prefetch window.
MAX_WAITING_LISTS: Final = 20


class EndpointMessageRequests:
    """Handles requests about messages. `added` is called after deliveries are committed.

    requests: limits the requests that use a database connection at a time.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        messages: EndpointMessages,
        requests: asyncio.Semaphore,
        *,
        added: Callable[[], None],
    ) -> None:
        self._endpoints = endpoints
        self._messages = messages
        self._requests = requests
        self._failed_lists = Turns(MAX_FAILED_LISTS, waiting=MAX_WAITING_LISTS)
        self._added = added

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(SEND_ENDPOINT_MESSAGE, self._send, within="message"),
                bound(GET_ENDPOINT_MESSAGE, self._get),
                bound(LIST_MESSAGE_ATTEMPTS, self._attempts),
                bound(LIST_ENDPOINT_MESSAGES, self._list),
                bound(LIST_FAILED_DELIVERIES, self._failed),
            )
        )

    async def _send(self, context: RequestContext, command: SendEndpointMessage) -> Response:
        message, owner = command.message, _owner(context)
        id_ = message.id or domain.message_id(
            owner, command.idempotency_key, context.message_id or new_id()
        )
        try:
            async with self._requests:
                endpoints = await self._messages.send(
                    NewMessage(owner, id_, message.event_type, message.payload)
                )
        except IdUsedError:
            return ID_USED
        self._added()
        metrics.ENDPOINT_MESSAGES.inc()
        logger.info(
            "endpoint message accepted",
            extra={"message_id": id_, "client_id": context.client_id, "endpoints": endpoints},
        )
        return EndpointMessageAccepted(id=id_, endpoints=endpoints)

    async def _get(self, context: RequestContext, command: GetEndpointMessage) -> Response:
        async with self._requests:
            message = await self._messages.find(_owner(context), command.id)
        return MESSAGE_NOT_FOUND if message is None else message

    async def _attempts(self, context: RequestContext, command: ListMessageAttempts) -> Response:
        try:
            after = _FIRST_ATTEMPT if command.cursor is None else _decode(command.cursor)
        except ValueError:
            return INVALID_CURSOR
        async with self._requests:
            found = await self._messages.attempts(
                _owner(context), command.id, after, command.limit + 1
            )
        if found is None:
            return MESSAGE_NOT_FOUND
        page = found[: command.limit]
        more = len(found) > command.limit
        return AttemptPage(
            items=[attempt for _, attempt in page],
            next_cursor=_encode(page[-1][1].at, page[-1][0]) if more else None,
        )

    async def _list(self, context: RequestContext, command: ListEndpointMessages) -> Response:
        owner = _owner(context)
        try:
            before = _NEWEST if command.cursor is None else _decode(command.cursor)[1]
        except ValueError:
            return INVALID_CURSOR
        async with self._requests:
            if await self._endpoints.find(owner, command.id) is None:
                return NOT_FOUND
            found = await self._messages.page(
                owner, command.id, command.status, before, command.limit + 1
            )
        return _page(found, command.limit)

    async def _failed(self, context: RequestContext, command: ListFailedDeliveries) -> Response:
        try:
            before = _NEWEST if command.cursor is None else _decode(command.cursor)[1]
        except ValueError:
            return INVALID_CURSOR
        async with self._failed_lists.turn():
            found = await self._messages.failed(_owner(context), before, command.limit + 1)
        return _page(found, command.limit)


def _owner(context: RequestContext) -> str:
    return context.client_id or ""


def _page(found: Sequence[tuple[int, Delivery]], limit: int) -> DeliveryPage:
    """Return the first `limit` deliveries; one more shows that another page follows."""
    page = found[:limit]
    more = len(found) > limit
    return DeliveryPage(
        items=[delivery for _, delivery in page],
        next_cursor=_encode(page[-1][1].created_at, page[-1][0]) if more else None,
    )


def _encode(at: datetime, id_: int) -> str:
    """Return the cursor of an attempt or a delivery."""
    return base64.urlsafe_b64encode(f"{at.astimezone(UTC).isoformat()}/{id_}".encode()).decode()


def _decode(cursor: str) -> tuple[datetime, int]:
    """Return the time and id in a cursor.

    Raises:
        ValueError: the text is not a cursor.
    """
    text = base64.urlsafe_b64decode(cursor.encode()).decode()
    at, _, id_ = text.partition("/")
    time, number = datetime.fromisoformat(at), int(id_)
    if time.tzinfo is not UTC or not 0 <= number <= _NEWEST:
        raise ValueError(cursor)
    return time, number
