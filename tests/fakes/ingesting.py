"""A producer of events and a consumer of postings, with plain aio-pika, and example events."""

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
from shared.topology import CALLBACKS, EVENTS, POSTINGS, SCHEDULES, USER_EVENTS
from tests.fakes.declaring import declare_queues
from tests.fakes.waiting import until

RUN_INGESTION = ("-m", "services", "run", "ingestion", "--metrics-port", "0")
UUID = "5f0c1f6e-8d0e-4b57-9a3d-0a8b5d5b7a11"
# As documented in docs/messages.md.
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
    """Return the body of an event with a new event_id."""
    return {**KNOWN_EVENTS[0], "event_id": uuid4().hex, **fields}


class IngestionClient:
    """Publishes events, consumes postings, and reads dead letters, on one connection."""

    def __init__(self, url: str, channel: AbstractChannel) -> None:
        self.url = url
        self.channel = channel
        self.postings: list[AbstractIncomingMessage] = []

    async def send(self, body: Any, **properties: Any) -> None:
        """Publish an event with confirmation."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        key = f"{body['from_service']}.{body['event']}" if isinstance(body, dict) else "x.y"
        defaults: dict[str, Any] = {
            "content_type": "application/json",
            "type": "Event",
            "delivery_mode": 2,
        }
        exchange = await self.channel.get_exchange("events", ensure=False)
        message = aio_pika.Message(raw, **(defaults | properties))
        await exchange.publish(message, routing_key=key, timeout=30)

    async def send_without_message_id(self, body: Any) -> None:
        """Publish an event without a message_id, which aio-pika always adds."""
        raw = json.dumps(body).encode()
        properties = codec.Properties(content_type="application/json", type="Event")
        async with connect(self.url, name="raw") as broker:
            _, intercepted = await broker.channel(confirms=True)
            confirmed = asyncio.Event()
            intercepted.on_confirm = lambda *_: confirmed.set()
            intercepted.write(
                codec.encode_publish(
                    *(intercepted.number, "events", "auth.user_signed_up", properties, raw),
                    mandatory=True,
                    frame_max=131_072,
                )
            )
            await asyncio.wait_for(confirmed.wait(), 30)

    def postings_of(self, event_id: str) -> list[AbstractIncomingMessage]:
        """Return the postings of an event received so far."""
        return [each for each in self.postings if json.loads(each.body)["from_event"] == event_id]

    def ids(self) -> dict[str, Counter[str]]:
        """Return, for each event, the ids of its postings with their counts."""
        found: dict[str, Counter[str]] = {}
        for each in self.postings:
            ids = found.setdefault(json.loads(each.body)["from_event"], Counter())
            ids[str(each.headers["x-ringback-id"])] += 1
        return found

    async def posting(self, event_id: str) -> AbstractIncomingMessage:
        """Wait for the first posting of an event."""
        found: list[AbstractIncomingMessage] = await until(lambda: self.postings_of(event_id))
        return found[0]

    async def dead_letters(self) -> int:
        """Return the number of dead letters in events.dead."""
        queue = await self.channel.declare_queue("events.dead", passive=True)
        return queue.declaration_result.message_count or 0

    async def dead_letter(self) -> AbstractIncomingMessage:
        """Wait for the next dead letter in events.dead and remove it."""
        queue = await self.channel.get_queue("events.dead")

        async def next_one() -> AbstractIncomingMessage | None:
            return await queue.get(no_ack=True, fail=False)

        dead_letter: AbstractIncomingMessage = await until(next_one)
        return dead_letter


@asynccontextmanager
async def ingestion_client(amqp_url: str) -> AsyncIterator[IngestionClient]:
    """Connect, declare ingestion's queues, and consume all postings."""
    await declare_queues(amqp_url, EVENTS, POSTINGS, SCHEDULES, CALLBACKS, USER_EVENTS)
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        client = IngestionClient(amqp_url, channel)
        queue = await channel.get_queue("postings")

        async def consume(message: AbstractIncomingMessage) -> None:
            client.postings.append(message)
            await message.ack()

        await queue.consume(consume)
        yield client


async def send_all(client: IngestionClient, bodies: list[dict[str, Any]]) -> None:
    """Publish many events at the same time, and wait for all confirmations."""
    await asyncio.gather(*(client.send(body) for body in bodies))
