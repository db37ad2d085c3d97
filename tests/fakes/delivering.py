"""What stands around delivery: who publishes messages, and who hears what became of them."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from services.delivery import app
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.process.health import Health
from shared.process.run import Process
from shared.settings import Settings, load
from shared.topology import topology
from tests.fakes.sandbox import Sandbox
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

RUN_DELIVERY = ("-m", "services", "run", "delivery", "--metrics-port", "0")
MAIL_FROM = "Shop <news@shop.example.com>"
# The key of the sandbox's gateway, known to everybody.
SMS_KEY = "the-key-of-the-sandbox-sms-gateway"
CANARY = "c4n4ry"
QUEUES = {"SendEmail": "messages.email", "SendSms": "messages.sms"}


def email(**fields: Any) -> dict[str, Any]:
    """Make the body of a SendEmail to somebody new."""
    ident = uuid4().hex
    return {
        "id": ident,
        "to": f"{CANARY}-{ident}@example.org",
        "subject": f"New movies {CANARY}",
        "text": f"Hello {CANARY}",
        "posting_id": "posting-1",
        "user_id": "user-1",
        **fields,
    }


def sms(**fields: Any) -> dict[str, Any]:
    """Make the body of a SendSms to somebody new."""
    ident = uuid4()
    phone = f"79{ident.int % 10**9:09}"
    return {"id": ident.hex, "phone": phone, "text": f"Code 1234 {CANARY}", **fields}


def within(seconds: float) -> str:
    """Give the moment so far ahead, as `expires_at`."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


class Around:
    """One connection: publishes messages, hears all facts, reads the dead queues."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.facts: list[dict[str, Any]] = []

    async def send(self, *bodies: dict[str, Any], **properties: Any) -> None:
        """Publish messages, confirmed."""
        await asyncio.gather(*(self._send(body, properties) for body in bodies))

    async def _send(self, body: dict[str, Any], properties: dict[str, Any]) -> None:
        kind = "SendSms" if "phone" in body else "SendEmail"
        given: dict[str, Any] = {
            "content_type": "application/json",
            "type": kind,
            "delivery_mode": 2,
        }
        message = aio_pika.Message(json.dumps(body).encode(), **(given | properties))
        await self.channel.default_exchange.publish(message, QUEUES[kind], timeout=30)

    def facts_of(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Give the facts about a message so far, in order."""
        return [fact for fact in self.facts if fact["message_id"] == body["id"]]

    def kinds(self, body: Mapping[str, Any]) -> list[str]:
        """Give what has happened to a message, in order."""
        return [fact["type"].removeprefix("message.") for fact in self.facts_of(body)]

    async def fact(
        self, body: Mapping[str, Any], kind: str, seconds: float = 20.0
    ) -> dict[str, Any]:
        """Wait for a fact about a message."""
        await until(lambda: kind in self.kinds(body), seconds)
        return next(f for f in self.facts_of(body) if f["type"] == f"message.{kind}")

    def sent(self) -> Counter[str]:
        """Count, by message id, how often a message was told to be sent."""
        return Counter(f["message_id"] for f in self.facts if f["type"] == "message.sent")

    async def length(self, queue: str) -> int:
        """How many messages are ready in a queue."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def letter(self, queue: str) -> AbstractIncomingMessage:
        """Wait for the next letter in a dead queue, and take it."""
        dead = await self.channel.get_queue(queue)

        async def next_one() -> AbstractIncomingMessage | None:
            return await dead.get(no_ack=True, fail=False)

        letter: AbstractIncomingMessage = await until(next_one)
        return letter


@asynccontextmanager
async def around(amqp_url: str) -> AsyncIterator[Around]:
    """Connect, declare all that Ringback needs, and hear all facts."""
    async with connect(amqp_url, name="test") as link:
        await declare(link.connection, topology())
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        it = Around(channel)
        facts = await channel.declare_queue(exclusive=True)
        await facts.bind("outcomes", "message.#")

        async def hear(message: AbstractIncomingMessage) -> None:
            it.facts.extend(json.loads(message.body)["facts"])

        await facts.consume(hear, no_ack=True)
        yield it


def settings(box: Sandbox, **more: str) -> dict[str, str]:
    """Give the environment of a delivery service that goes to the sandbox."""
    return {
        "RINGBACK_SMTP_URL": str(box.smtp),
        "RINGBACK_MAIL_FROM": MAIL_FROM,
        "RINGBACK_SMS_URL": str(box.url / "sms"),
        "RINGBACK_SMS_KEY": SMS_KEY,
        **more,
    }


@contextmanager
def delivery(directory: Path, amqp_url: str, given: Mapping[str, str]) -> Iterator[Service]:
    """Run delivery for the length of the block; its log is shown where that fails."""
    with running(directory, amqp_url, given, RUN_DELIVERY) as service:
        yield service


@asynccontextmanager
async def at_work(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, given: Mapping[str, str]
) -> AsyncIterator[Process]:
    """Run delivery in this process, which starts in no time; ready; drained at the end."""
    for name, value in {**given, "RINGBACK_AMQP_URL": amqp_url}.items():
        monkeypatch.setenv(name, value)
    process = Process("delivery", load(Settings), Health())
    async with process.stack:
        await app.start(process)
        await until(lambda: process.health.ready)
        yield process
        assert await process.stop() == 0
