"""Plays the callback service: takes its orders off the queue and tells what became of them."""

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

# Literals on purpose: these names are promised to programs that never see our code.
SCHEDULES = "schedules"


@dataclass(frozen=True)
class Arrival:
    """An order of the scheduler's, as it came. `at` in seconds since the epoch."""

    id: str
    at: float
    dispatch: int
    body: dict[str, Any]
    headers: dict[str, Any]


# What becomes of an order: the type of its fact and the fields that this type has.
Behaviour = Callable[[Arrival], tuple[str, dict[str, Any]] | None]


def delivers(_: Arrival) -> tuple[str, dict[str, Any]]:
    """Deliver everything."""
    return "callback.delivered", {"status": 200, "duration": 0.01}


@dataclass
class FakeCallbackService:
    """One connection: takes orders, tells facts, and publishes schedules as a client does."""

    channel: AbstractChannel
    fate: Behaviour = delivers
    arrivals: list[Arrival] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, body: Any, type_: str = "ScheduleCallback", **properties: Any) -> str:
        """Publish a message to the exchange `schedules`, confirmed; gives its message_id."""
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

    async def dead(self) -> list[AbstractIncomingMessage]:
        """Take what is in `schedules.dead`."""
        queue = await self.channel.get_queue(f"{SCHEDULES}.dead", ensure=False)
        found = []
        while message := await queue.get(no_ack=True, fail=False):
            found.append(message)
        return found

    async def letter(self, within: float = 20.0) -> AbstractIncomingMessage:
        """Wait for a dead letter."""
        found: list[AbstractIncomingMessage] = await until(self.dead, within)
        return found[0]

    def of(self, event: str) -> list[Arrival]:
        """Give the arrivals of an event."""
        return [each for each in self.arrivals if each.id == event]

    def told(self, kind: str) -> set[str]:
        """Give the events that a fact of the scheduler's was told about."""
        return {fact["schedule_id"] for fact in self.facts if fact["type"] == f"schedule.{kind}"}

    async def take(self, message: AbstractIncomingMessage) -> None:
        body = json.loads(message.body)
        headers = dict(message.headers)
        dispatch = int(str(headers["x-ringback-dispatch"]))
        arrival = Arrival(body["id"], time.time(), dispatch, body, headers)
        self.arrivals.append(arrival)
        if (fate := self.fate(arrival)) is not None:
            await self.tell(arrival, *fate)
        await message.ack()

    async def tell(self, arrival: Arrival, kind: str, fields: dict[str, Any]) -> None:
        """Publish a fact about an order."""
        fact = {
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
        exchange = await self.channel.get_exchange("outcomes", ensure=False)
        await exchange.publish(
            aio_pika.Message(
                json.dumps({"facts": [fact]}).encode(),
                content_type="application/json",
                type="Facts",
                delivery_mode=2,
                message_id=uuid4().hex,
            ),
            routing_key=f"{kind}.scheduler",
            timeout=30,
        )

    async def hear(self, message: AbstractIncomingMessage) -> None:
        self.facts += json.loads(message.body)["facts"]


@asynccontextmanager
async def fake_callback_service(
    amqp_url: str, fate: Behaviour = delivers
) -> AsyncIterator[FakeCallbackService]:
    """Play, once the scheduler has declared what it needs."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        await channel.set_qos(500)
        it = FakeCallbackService(channel, fate)
        facts = await channel.declare_queue(exclusive=True)
        await facts.bind("outcomes", "schedule.*")
        await facts.consume(it.hear, no_ack=True)
        await (await channel.get_queue("callbacks", ensure=False)).consume(it.take)
        yield it


async def gathered(*work: Any, at_once: int = 500) -> None:
    """Await many, not all at once."""
    places = asyncio.Semaphore(at_once)

    async def one(each: Any) -> None:
        async with places:
            await each

    await asyncio.gather(*map(one, work))
