"""The scheduler as its own process, and a stand-in for the callback service behind it."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from tests.fakes.command import ringback
from tests.fakes.service import Service, running

SECRETS_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
TICKET_KEY = "a-ticket-key-that-is-long-enough-to-sign"
RUN_SCHEDULER = ("-m", "services", "run", "scheduler", "--metrics-port", "0")


def settings_for(database_url: str, **more: str) -> dict[str, str]:
    """What a scheduler is started with."""
    return {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
        "RINGBACK_TICKET_KEY": TICKET_KEY,
        **more,
    }


async def migrated(database_url: str) -> None:
    """Bring the schema up to date, as people do."""
    output = await ringback("migrate", amqp_url=None, RINGBACK_DATABASE_URL=database_url)
    assert output.code == 0, output.err


@contextmanager
def scheduler(
    directory: Path, amqp_url: str, database_url: str, **settings: str
) -> Iterator[Service]:
    """Run one scheduler for the length of the block."""
    with running(
        directory, amqp_url, settings_for(database_url, **settings), RUN_SCHEDULER
    ) as service:
        yield service


def moment(seconds: float) -> str:
    """So many seconds from now, as a message says it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def schedule(channel: AbstractChannel, body: Mapping[str, Any], **properties: Any) -> str:
    """Publish a ScheduleCallback, confirmed; gives its message_id."""
    message = aio_pika.Message(
        json.dumps(body).encode(),
        content_type="application/json",
        type="ScheduleCallback",
        delivery_mode=2,
        **({"message_id": uuid4().hex} | properties),
    )
    exchange = await channel.get_exchange("schedules", ensure=False)
    await exchange.publish(message, routing_key="schedule", timeout=30)
    assert message.message_id is not None
    return message.message_id


@dataclass(slots=True)
class Notifications:
    """What the stand-in got: for each id, when (epoch seconds) and with which payload."""

    channel: AbstractChannel
    came: dict[str, list[tuple[float, dict[str, Any]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    orders: list[dict[str, Any]] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        """The event keys of all that came."""
        return {times[0][1]["event_key"] for times in self.came.values()}

    @property
    def repeats(self) -> int:
        return sum(len(times) - 1 for times in self.came.values())

    @property
    def earliest(self) -> float:
        """By how many seconds the one came that came soonest after its moment."""
        return min(
            at - datetime.fromisoformat(payload["run_at"]).timestamp()
            for times in self.came.values()
            for at, payload in times
        )

    async def take(self, message: AbstractIncomingMessage) -> None:
        """Note it, say that it was delivered, and ack."""
        order = json.loads(message.body)
        self.orders.append(order)
        self.came[order["id"]].append((time.time(), order["payload"]))
        await self.tell("delivered", message, status=200, duration=0.001)
        await message.ack()

    async def tell(self, what: str, message: AbstractIncomingMessage, **more: Any) -> None:
        """Publish the fact about a message, as the callback service does."""
        fact = {
            "type": f"callback.{what}",
            "fact_id": uuid4().hex,
            "at": datetime.now(UTC).isoformat(),
            "callback_id": json.loads(message.body)["id"],
            "client_id": None,
            "target": "http://127.0.0.1:9",
            "attempt": 1,
            "owner": message.headers["x-ringback-owner"],
            "dispatch": message.headers["x-ringback-dispatch"],
            **more,
        }
        outcomes = await self.channel.get_exchange("outcomes", ensure=False)
        await outcomes.publish(
            aio_pika.Message(
                json.dumps({"facts": [fact]}).encode(),
                content_type="application/json",
                type="Facts",
                delivery_mode=2,
                message_id=uuid4().hex,
            ),
            routing_key=f"callback.{what}.scheduler",
            mandatory=False,
        )


@asynccontextmanager
async def callback_stand_in(amqp_url: str) -> AsyncIterator[Notifications]:
    """Consume `callbacks` in place of the callback service; everything is delivered at once.

    It connects robustly: the broker may come and go.
    """
    connection = await aio_pika.connect_robust(amqp_url)
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        await channel.set_qos(200)
        notifications = Notifications(channel)
        queue = await channel.get_queue("callbacks", ensure=False)
        await queue.consume(notifications.take)
        yield notifications
        await asyncio.sleep(0)
