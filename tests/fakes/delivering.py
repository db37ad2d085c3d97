"""Helpers for tests of delivery: messages, a broker client and a running service."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from services.delivery import app
from shared.contracts.delivery_requests import STOP_MAILING
from shared.postgres.migrations import migrate
from shared.process.health import Health
from shared.process.run import Process
from shared.registry import BULK, CHANNELS, Priority
from shared.settings import Settings, load
from shared.topology import DELIVERY_REQUESTS, MAILINGS_OUTCOMES
from tests.fakes.declaring import declare_queues
from tests.fakes.rpc import rpc_client
from tests.fakes.sandbox import Sandbox
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

RUN_DELIVERY = ("-m", "services", "run", "delivery", "--metrics-port", "0")
MAIL_FROM = "Shop <news@shop.example.com>"
# The public key of the sandbox's gateway.
SMS_KEY = "the-key-of-the-sandbox-sms-gateway"
CANARY = "c4n4ry"
# Sends StopMailing with these fields, and returns the response.
StopRequests = Callable[..., Awaitable[Any]]


def email(**fields: Any) -> dict[str, Any]:
    """Return the body of a SendEmail to a new recipient."""
    message_id = uuid4().hex
    return {
        "id": message_id,
        "to": f"{CANARY}-{message_id}@example.org",
        "subject": f"New movies {CANARY}",
        "text": f"Hello {CANARY}",
        "posting_id": "posting-1",
        "user_id": "user-1",
        **fields,
    }


def sms(**fields: Any) -> dict[str, Any]:
    """Return the body of a SendSms to a new recipient."""
    message_id = uuid4()
    phone = f"79{message_id.int % 10**9:09}"
    return {"id": message_id.hex, "phone": phone, "text": f"Code 1234 {CANARY}", **fields}


def seconds_from_now(seconds: float) -> str:
    """Return this time as an `expires_at`."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


class MessageClient:
    """Publishes messages, collects all facts about them and reads dead letters."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.facts: list[dict[str, Any]] = []
        self._facts_by_id: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

    def record(self, facts: Iterable[dict[str, Any]]) -> None:
        """Record facts."""
        for fact in facts:
            self.facts.append(fact)
            self._facts_by_id[fact["message_id"]].append(fact)

    async def send(
        self,
        *bodies: dict[str, Any],
        priority: Priority = BULK,
        queue: str | None = None,
        **properties: Any,
    ) -> None:
        """Publish messages with confirms, to the queue of their channel unless one is given."""
        await asyncio.gather(*(self._send(body, priority, queue, properties) for body in bodies))

    async def _send(
        self,
        body: dict[str, Any],
        priority: Priority,
        queue: str | None,
        properties: dict[str, Any],
    ) -> None:
        channel = CHANNELS["sms" if "phone" in body else "email"]
        defaults: dict[str, Any] = {
            "content_type": "application/json",
            "type": channel.type,
            "delivery_mode": 2,
        }
        message = aio_pika.Message(json.dumps(body).encode(), **(defaults | properties))
        await self.channel.default_exchange.publish(
            message, queue or channel.queues[priority], timeout=30
        )

    def facts_of(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the facts about a message so far, in order."""
        return self._facts_by_id[body["id"]]

    def outcomes(self, body: Mapping[str, Any]) -> list[str]:
        """Return the types of the facts about a message, in order, without `message.`."""
        return [fact["type"].removeprefix("message.") for fact in self.facts_of(body)]

    async def fact(
        self, body: Mapping[str, Any], outcome: str, seconds: float = 60.0
    ) -> dict[str, Any]:
        """Wait for a fact about a message and return it."""
        await until(lambda: outcome in self.outcomes(body), seconds)
        return next(f for f in self.facts_of(body) if f["type"] == f"message.{outcome}")

    def sent(self) -> Counter[str]:
        """Return how many facts say `sent`, by message id."""
        return Counter(f["message_id"] for f in self.facts if f["type"] == "message.sent")

    async def length(self, queue: str) -> int:
        """Return the number of ready messages in a queue."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def dead_letter(self, queue: str) -> AbstractIncomingMessage:
        """Wait for a message in a dead-letter queue and consume it."""
        source = await self.channel.get_queue(queue)

        async def next_one() -> AbstractIncomingMessage | None:
            return await source.get(no_ack=True, fail=False)

        message: AbstractIncomingMessage = await until(next_one)
        return message


@asynccontextmanager
async def message_client(amqp_url: str) -> AsyncIterator[MessageClient]:
    """Declare delivery's queues, and yield a client that receives all facts about messages."""
    channels = (queue for each in CHANNELS.values() for queue in each.queues.values())
    await declare_queues(amqp_url, *channels, MAILINGS_OUTCOMES, DELIVERY_REQUESTS)
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        client = MessageClient(channel)
        facts = await channel.declare_queue(exclusive=True)
        await facts.bind("outcomes", "message.#")

        async def receive(message: AbstractIncomingMessage) -> None:
            client.record(json.loads(message.body)["facts"])

        await facts.consume(receive, no_ack=True)
        yield client


@asynccontextmanager
async def requests_to_delivery(amqp_url: str) -> AsyncIterator[StopRequests]:
    """Yield a function that sends StopMailing with these fields, and returns the response."""
    async with rpc_client(amqp_url) as client:

        async def request(**fields: Any) -> Any:
            body = json.dumps(fields).encode()
            return await client.request(STOP_MAILING.queue, STOP_MAILING.name, body, timeout=1)

        yield request


async def delivery_database(database_url: str) -> str:
    """Migrate a database for delivery, and return its URL."""
    await migrate(database_url, app.SCHEMA)
    return database_url


def settings(sandbox: Sandbox, database_url: str, **more: str) -> dict[str, str]:
    """Return the environment of a delivery service that uses the sandbox."""
    return {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_SMTP_URL": str(sandbox.smtp),
        "RINGBACK_MAIL_FROM": MAIL_FROM,
        "RINGBACK_SMS_URL": str(sandbox.url / "sms"),
        "RINGBACK_SMS_KEY": SMS_KEY,
        **more,
    }


@contextmanager
def delivery_process(
    directory: Path, amqp_url: str, environment: Mapping[str, str]
) -> Iterator[Service]:
    """Run delivery as a process during the block; a failure shows its log."""
    with running(directory, amqp_url, environment, RUN_DELIVERY) as service:
        yield service


@asynccontextmanager
async def delivery_in_process(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, environment: Mapping[str, str]
) -> AsyncIterator[Process]:
    """Run delivery in the test process, which starts faster; drain it at the end."""
    for name, value in {**environment, "RINGBACK_AMQP_URL": amqp_url}.items():
        monkeypatch.setenv(name, value)
    process = Process("delivery", load(Settings), Health())
    async with process.stack:
        await app.start(process)
        await until(lambda: process.health.ready)
        yield process
        assert await process.stop() == 0
