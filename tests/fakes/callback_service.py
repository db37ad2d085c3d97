"""A callback service for the scheduler's tests: consumes SendCallback, and publishes facts.

Facts go out in batches, as those of the real service do. One message per fact is so slow on a busy
machine that short leases expire while callbacks wait in the queue, and each expiry adds a repeat.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from tests.fakes.waiting import until

# A literal on purpose: programs that never see our code rely on this name.
SCHEDULES = "schedules"


@dataclass(frozen=True)
class Arrival:
    """A SendCallback of the scheduler. `at` is when it came, in seconds since the epoch."""

    id: str
    at: float
    dispatch: int
    body: dict[str, Any]
    headers: dict[str, Any]


MAX_FACTS = 100  # in one message

# Returns the type and the fields of the fact to publish, or None to publish nothing.
Behaviour = Callable[[Arrival], tuple[str, dict[str, Any]] | None]


def deliver(_: Arrival) -> tuple[str, dict[str, Any]]:
    """Report every callback as delivered."""
    return "callback.delivered", {"status": 200, "duration": 0.01}


@dataclass
class FakeCallbackService:
    """The callback service, and a client that publishes schedules."""

    channel: AbstractChannel
    behaviour: Behaviour = deliver
    arrivals: list[Arrival] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    _unpublished: asyncio.Queue[tuple[AbstractIncomingMessage, dict[str, Any]]] = field(
        default_factory=asyncio.Queue
    )

    async def send(self, body: Any, type_: str = "ScheduleCallback", **properties: Any) -> str:
        """Publish a message to the exchange `schedules`, confirmed, and return its message_id."""
        key = {"ScheduleCallback": "schedule", "CancelCallback": "cancel"}.get(type_, "reschedule")
        given: dict[str, Any] = {
            "content_type": "application/json",
            "type": type_,
            "delivery_mode": 2,
            "message_id": uuid4().hex,
        } | properties
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        exchange = await self.channel.get_exchange(SCHEDULES, ensure=False)
        await exchange.publish(aio_pika.Message(raw, **given), routing_key=key, timeout=30)
        return str(given["message_id"])

    async def dead_letters(self) -> list[AbstractIncomingMessage]:
        """Consume and return what is in `schedules.dead`."""
        queue = await self.channel.get_queue(f"{SCHEDULES}.dead", ensure=False)
        found = []
        while message := await queue.get(no_ack=True, fail=False):
            found.append(message)
        return found

    async def dead_letter(self, within: float = 60.0) -> AbstractIncomingMessage:
        """Wait for a dead letter."""
        found: list[AbstractIncomingMessage] = await until(self.dead_letters, within)
        return found[0]

    def arrivals_of(self, callback: str) -> list[Arrival]:
        """Return the arrivals of a callback."""
        return [each for each in self.arrivals if each.id == callback]

    def reported(self, kind: str) -> set[str]:
        """Return the callbacks about which the scheduler published a fact of this type."""
        return {fact["schedule_id"] for fact in self.facts if fact["type"] == f"schedule.{kind}"}

    async def receive_callback(self, message: AbstractIncomingMessage) -> None:
        body = json.loads(message.body)
        headers = dict(message.headers)
        dispatch = int(str(headers["x-ringback-dispatch"]))
        arrival = Arrival(body["id"], time.time(), dispatch, body, headers)
        self.arrivals.append(arrival)
        if (outcome := self.behaviour(arrival)) is None:
            await message.ack()
        else:
            self._unpublished.put_nowait((message, self._fact(arrival, *outcome)))

    async def receive_facts(self, message: AbstractIncomingMessage) -> None:
        self.facts += json.loads(message.body)["facts"]

    async def publish_facts(self) -> None:
        """Publish facts in batches until cancelled; acknowledge their callbacks afterwards."""
        while True:
            batch = [await self._unpublished.get()]
            while len(batch) < MAX_FACTS and not self._unpublished.empty():
                batch.append(self._unpublished.get_nowait())
            kinds = {fact["type"] for _, fact in batch}
            for kind in sorted(kinds):
                await self._publish(kind, [fact for _, fact in batch if fact["type"] == kind])
            for message, _ in batch:
                await message.ack()

    def _fact(self, arrival: Arrival, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": kind,
            "fact_id": f"{arrival.id}/{arrival.dispatch}/{kind}",
            "at": "2026-11-20T15:00:00Z",
            "callback_id": arrival.id,
            "client_id": None,
            "target": "https://shop.example.com:443",
            "attempt": 1,
            "owner": "scheduler",
            "dispatch": arrival.dispatch,
        } | fields

    async def _publish(self, kind: str, facts: list[dict[str, Any]]) -> None:
        exchange = await self.channel.get_exchange("outcomes", ensure=False)
        await exchange.publish(
            aio_pika.Message(
                json.dumps({"facts": facts}).encode(),
                content_type="application/json",
                type="Facts",
                delivery_mode=2,
                message_id=uuid4().hex,
            ),
            routing_key=f"{kind}.scheduler",
            timeout=30,
        )


@asynccontextmanager
async def schedules_client(
    amqp_url: str, behaviour: Behaviour = deliver
) -> AsyncIterator[FakeCallbackService]:
    """Publish schedules and receive facts. The scheduler must have declared its queues before."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        await channel.set_qos(500)
        service = FakeCallbackService(channel, behaviour)
        facts = await channel.declare_queue(exclusive=True)
        await facts.bind("outcomes", "schedule.*")
        await facts.consume(service.receive_facts, no_ack=True)
        yield service


@asynccontextmanager
async def fake_callback_service(
    amqp_url: str, behaviour: Behaviour = deliver
) -> AsyncIterator[FakeCallbackService]:
    """Run the fake, which consumes `callbacks`, as a client of schedules."""
    async with schedules_client(amqp_url, behaviour) as service:
        callbacks = await service.channel.get_queue("callbacks", ensure=False)
        await callbacks.consume(service.receive_callback)
        publishing = asyncio.create_task(service.publish_facts())
        yield service
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)


async def gather_limited(*work: Any, limit: int = 500) -> None:
    """Await all, at most `limit` at a time."""
    slots = asyncio.Semaphore(limit)

    async def one(each: Any) -> None:
        async with slots:
            await each

    await asyncio.gather(*map(one, work))
