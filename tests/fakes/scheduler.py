"""A scheduler for the gateway's tests: speaks the request/reply protocol from outside, in memory.

It keeps callbacks by client id and answers as the real one is documented to; what it can't know
(validation, firing) is set by the test in `answers`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

# A literal on purpose, as everything here: the protocol is what it is, not what our code makes it.
QUEUE = "scheduler.requests"
RUN_AT = "2030-01-01T12:00:00Z"

Answer = Callable[[Any], dict[str, Any] | None]


def not_found() -> dict[str, Any]:
    return {"error": {"code": "not_found", "detail": "there is no such callback", "errors": []}}


class FakeScheduler:
    """What it was asked, and the callbacks it keeps: by client id, then by id.

    `answers` takes the place of its own answer to an operation; None is no answer at all.
    """

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self.asked: list[tuple[str, str | None, Any]] = []
        self.messages: list[AbstractIncomingMessage] = []
        self.kept: dict[str | None, dict[str, dict[str, Any]]] = {}
        self.answers: dict[str, Answer] = {}

    async def heard(self, message: AbstractIncomingMessage) -> None:
        """Answer one request."""
        body = json.loads(message.body)
        client: Any = message.headers.get("x-ringback-client-id")
        operation = str(message.type)
        if operation != "Ping":
            self.messages.append(message)
            self.asked.append((operation, None if client is None else str(client), body))
        given = self.answers.get(operation)
        said = self._answer(operation, client, body) if given is None else given(body)
        if said is not None:
            await self._reply(message, said)
        await message.ack()

    async def answer_late(self, said: dict[str, Any]) -> None:
        """Answer the last request, which was given no answer when it came."""
        await self._reply(self.messages[-1], said)

    async def _reply(self, message: AbstractIncomingMessage, said: dict[str, Any]) -> None:
        await self._channel.default_exchange.publish(
            aio_pika.Message(
                json.dumps(said).encode(),
                content_type="application/json",
                correlation_id=message.correlation_id,
            ),
            routing_key=str(message.reply_to),
            mandatory=False,
        )

    def _answer(self, operation: str, client: Any, body: dict[str, Any]) -> dict[str, Any]:
        mine = self.kept.setdefault(client, {})
        if operation == "Ping":
            return {"ok": {"status": "ready"}}
        if operation.startswith("Create"):
            key = body.get("idempotency_key")
            many = body.get("callbacks", [body.get("callback")])
            made = [self._created(client, one, key) for one in many]
            return {"ok": {"items": made} if "callbacks" in body else made[0]}
        if operation == "RetryCallbacks":
            return {"ok": {"count": len(mine), "ids": sorted(mine)}}
        keys = {k: v for k, v in body.items() if k in ("id", "group_key", "event_key")}
        found = [one for one in mine.values() if keys.items() <= one.items()]
        return {"ok": _about(operation, found, body)} if found else self._none(operation)

    def _none(self, operation: str) -> dict[str, Any]:
        if operation == "ListCallbacks":
            return {"ok": {"items": [], "next_cursor": None}}
        return not_found()

    def _created(self, client: Any, callback: dict[str, Any], key: str | None) -> dict[str, Any]:
        identity = str(uuid5(NAMESPACE_URL, f"{client} {key}") if key else uuid4())
        self.kept.setdefault(client, {})[identity] = {
            "id": identity,
            "status": "scheduled",
            "run_at": callback.get("run_at", RUN_AT),
            "next_at": callback.get("run_at", RUN_AT),
            "attempts": 0,
            "last_error": None,
            "group_key": callback.get("group_key"),
            "event_key": callback.get("event_key"),
            "context": callback.get("context"),
        }
        return {"id": identity, "status": "scheduled", "run_at": callback.get("run_at", RUN_AT)}


def _about(operation: str, found: list[dict[str, Any]], body: dict[str, Any]) -> dict[str, Any]:
    match operation:
        case "GetCallback":
            return found[0]
        case "ListCallbacks":
            return {"items": found, "next_cursor": None}
        case "RescheduleCallback":
            return {"id": found[0]["id"], "result": "rescheduled", "run_at": body.get("run_at")}
        case "CancelCallbacks" if set(body) == {"group_key"}:
            items = [{"id": one["id"], "result": "cancelled"} for one in found]
            return {"items": items, "counts": {"cancelled": len(items)}}
        case "CancelCallbacks":
            return {"id": found[0]["id"], "result": "cancelled"}
    raise AssertionError(f"no such operation: {operation}")


@asynccontextmanager
async def fake_scheduler(amqp_url: str) -> AsyncIterator[FakeScheduler]:
    """Answer requests for the length of the block."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(
            QUEUE, durable=True, arguments={"x-queue-type": "classic"}
        )
        scheduler = FakeScheduler(channel)
        tag = await queue.consume(scheduler.heard)
        yield scheduler
        await queue.cancel(tag)
        await asyncio.sleep(0)
