"""Producers of events and what listens behind ingestion, with plain aio-pika; the known events."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from shared.amqp import codec
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.topology import topology
from tests.fakes.waiting import until

RUN_INGESTION = ("-m", "services", "run", "ingestion", "--metrics-port", "0")
UUID = "5f0c1f6e-8d0e-4b57-9a3d-0a8b5d5b7a11"
# As interfaces.md has them.
KNOWN_EVENTS: tuple[dict[str, Any], ...] = (
    {
        "from_service": "auth",
        "event": "user_signed_up",
        "details": {
            "username": "user@mail.com",
            "user": f"https://auth/api/v1/users/{UUID}/",
        },
    },
    {
        "from_service": "fastapi",
        "event": "new_episode",
        "details": {"series": [f"https://fastapi/api/v1/series/{UUID}/"]},
    },
    {
        "from_service": "activity_api",
        "event": "reactions_summary",
        "details": {
            "stats": [
                {
                    "type": "like",
                    "total": 7,
                    "target": "https://activity_api/api/v1/reviews/1",
                }
            ]
        },
    },
    {
        "from_service": "cinema_scanner",
        "event": "new_movies",
        "details": {"movies": [f"https://fastapi/api/v1/movies/{UUID}/"]},
    },
)


def signed_up(**fields: Any) -> dict[str, Any]:
    """Make the body of an event with a fresh event_id."""
    return {**KNOWN_EVENTS[0], "event_id": uuid4().hex, **fields}


class Outskirts:
    """One connection: publishes events, takes what follows from them, reads the dead queue."""

    def __init__(self, url: str, channel: AbstractChannel) -> None:
        self.url = url
        self.channel = channel
        self.postings: list[AbstractIncomingMessage] = []

    async def send(self, body: Any, **properties: Any) -> None:
        """Publish an event, confirmed, as its documentation says."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        key = f"{body['from_service']}.{body['event']}" if isinstance(body, dict) else "x.y"
        given: dict[str, Any] = {
            "content_type": "application/json",
            "type": "Event",
            "delivery_mode": 2,
        }
        exchange = await self.channel.get_exchange("events", ensure=False)
        message = aio_pika.Message(raw, **(given | properties))
        await exchange.publish(message, routing_key=key, timeout=30)

    async def send_without_message_id(self, body: Any) -> None:
        """Publish, confirmed, as clients do that give no message_id; aio-pika always makes one."""
        raw = json.dumps(body).encode()
        bare = codec.Properties(content_type="application/json", type="Event")
        async with connect(self.url, name="raw") as link:
            _, intercepted = await link.channel(confirms=True)
            confirmed = asyncio.Event()
            intercepted.on_confirm = lambda *_: confirmed.set()
            intercepted.write(
                codec.encode_publish(
                    *(intercepted.number, "events", "auth.user_signed_up", bare, raw),
                    mandatory=True,
                    frame_max=131_072,
                )
            )
            await asyncio.wait_for(confirmed.wait(), 30)

    def of(self, event_id: str) -> list[AbstractIncomingMessage]:
        """Give the postings that came from an event so far."""
        return [each for each in self.postings if json.loads(each.body)["from_event"] == event_id]

    def ids(self) -> dict[str, Counter[str]]:
        """Give, by event, the ids of its postings with how often each came."""
        found: dict[str, Counter[str]] = {}
        for each in self.postings:
            ids = found.setdefault(json.loads(each.body)["from_event"], Counter())
            ids[str(each.headers["x-ringback-id"])] += 1
        return found

    async def posting(self, event_id: str) -> AbstractIncomingMessage:
        """Wait for the first posting from an event."""
        found: list[AbstractIncomingMessage] = await until(lambda: self.of(event_id))
        return found[0]

    async def length_of_dead(self) -> int:
        """Count what lies in events.dead."""
        queue = await self.channel.declare_queue("events.dead", passive=True)
        return queue.declaration_result.message_count or 0

    async def letter(self) -> AbstractIncomingMessage:
        """Wait for the next letter in events.dead, and take it."""
        queue = await self.channel.get_queue("events.dead")

        async def next_one() -> AbstractIncomingMessage | None:
            return await queue.get(no_ack=True, fail=False)

        letter: AbstractIncomingMessage = await until(next_one)
        return letter


@asynccontextmanager
async def outskirts(amqp_url: str) -> AsyncIterator[Outskirts]:
    """Connect, declare what Ringback needs, and take all postings as they come."""
    async with connect(amqp_url, name="test") as link:
        await declare(link.connection, topology())
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        it = Outskirts(amqp_url, channel)
        queue = await channel.get_queue("postings")

        async def take(message: AbstractIncomingMessage) -> None:
            it.postings.append(message)
            await message.ack()

        await queue.consume(take)
        yield it


async def send_all(to: Outskirts, bodies: list[dict[str, Any]]) -> None:
    """Publish many at once; all are confirmed."""
    await asyncio.gather(*(to.send(body) for body in bodies))
