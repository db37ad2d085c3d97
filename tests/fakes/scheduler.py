"""A fake scheduler in memory that speaks the request protocol, for tests of the gateway."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

# Literals, not constants of the product: the tests check the protocol itself.
QUEUE = "scheduler.requests"
RUN_AT = "2030-01-01T12:00:00Z"

Respond = Callable[[Any], dict[str, Any] | None]


def not_found() -> dict[str, Any]:
    return {"error": {"code": "not_found", "detail": "callback not found", "errors": []}}


class FakeScheduler:
    """A scheduler that keeps callbacks by client id and id, and records its requests.

    `requests` are triples of operation, client id and body. A test sets `responses` to replace the
    response of an operation; None means no response.
    """

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self.requests: list[tuple[str, str | None, Any]] = []
        self.messages: list[AbstractIncomingMessage] = []
        self.callbacks: dict[str | None, dict[str, dict[str, Any]]] = {}
        self.responses: dict[str, Respond] = {}

    async def on_request(self, message: AbstractIncomingMessage) -> None:
        """Record a request and respond to it."""
        body = json.loads(message.body)
        client: Any = message.headers.get("x-ringback-client-id")
        operation = str(message.type)
        if operation != "Ping":
            self.messages.append(message)
            self.requests.append((operation, None if client is None else str(client), body))
        respond = self.responses.get(operation)
        response = self._response(operation, client, body) if respond is None else respond(body)
        if response is not None:
            await self._publish(message, response)
        await message.ack()

    async def respond_late(self, response: dict[str, Any]) -> None:
        """Respond to the last request, which got no response when it came."""
        await self._publish(self.messages[-1], response)

    async def _publish(self, request: AbstractIncomingMessage, response: dict[str, Any]) -> None:
        await self._channel.default_exchange.publish(
            aio_pika.Message(
                json.dumps(response).encode(),
                content_type="application/json",
                correlation_id=request.correlation_id,
            ),
            routing_key=str(request.reply_to),
            mandatory=False,
        )

    def _response(self, operation: str, client: Any, body: dict[str, Any]) -> dict[str, Any]:
        own = self.callbacks.setdefault(client, {})
        if operation == "Ping":
            return {"ok": {"status": "ready"}}
        if operation.startswith("Create"):
            key = body.get("idempotency_key")
            batch = body.get("callbacks", [body.get("callback")])
            created = [self._create(client, callback, key) for callback in batch]
            return {"ok": {"items": created} if "callbacks" in body else created[0]}
        if operation == "RetryCallbacks":
            return {"ok": {"count": len(own), "ids": sorted(own)}}
        keys = {k: v for k, v in body.items() if k in ("id", "group_key", "event_key")}
        found = [callback for callback in own.values() if keys.items() <= callback.items()]
        if found:
            return {"ok": _result(operation, found, body)}
        if operation == "ListCallbacks":
            return {"ok": {"items": [], "next_cursor": None}}
        return not_found()

    def _create(self, client: Any, callback: dict[str, Any], key: str | None) -> dict[str, Any]:
        identity = str(uuid5(NAMESPACE_URL, f"{client} {key}") if key else uuid4())
        run_at = callback.get("run_at", RUN_AT)
        self.callbacks.setdefault(client, {})[identity] = {
            "id": identity,
            "status": "scheduled",
            "run_at": run_at,
            "next_at": run_at,
            "attempts": 0,
            "last_error": None,
            "group_key": callback.get("group_key"),
            "event_key": callback.get("event_key"),
            "context": callback.get("context"),
            "etag": '"1"',
        }
        return {"id": identity, "status": "scheduled", "run_at": run_at}


def _result(operation: str, found: list[dict[str, Any]], body: dict[str, Any]) -> dict[str, Any]:
    match operation:
        case "GetCallback":
            return found[0]
        case "ListCallbacks":
            return {"items": found, "next_cursor": None}
        case "RescheduleCallback":
            return {"id": found[0]["id"], "result": "rescheduled", "run_at": body.get("run_at")}
        case "CancelCallbacks" if set(body) == {"group_key"}:
            items = [{"id": callback["id"], "result": "cancelled"} for callback in found]
            return {"items": items, "counts": {"cancelled": len(items)}}
        case "CancelCallbacks":
            return {"id": found[0]["id"], "result": "cancelled"}
    raise AssertionError(f"unknown operation: {operation}")


@asynccontextmanager
async def fake_scheduler(amqp_url: str) -> AsyncIterator[FakeScheduler]:
    """Run a fake scheduler while the context lasts."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(
            QUEUE, durable=True, arguments={"x-queue-type": "classic"}
        )
        scheduler = FakeScheduler(channel)
        tag = await queue.consume(scheduler.on_request)
        yield scheduler
        await queue.cancel(tag)
        await asyncio.sleep(0)
