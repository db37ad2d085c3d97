"""The consumer of a queue in this process, between a real broker and the handler of a test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from shared.amqp.consumer import Consumer
from shared.amqp.fact_sender import FactSender
from shared.amqp.message import ConsumerSpec, Message
from shared.amqp.publisher import Publisher
from shared.clock import SystemClock
from shared.contracts.facts import CallbackDead
from shared.process.health import Health
from shared.resilience.retry import RetryPolicy
from shared.topology import CALLBACKS, SCHEDULER_OUTCOMES, topology
from tests.fakes.broker_client import BrokerClient, broker_client
from tests.fakes.waiting import until

Handler = Callable[[Message, str], Awaitable[str]]


@asynccontextmanager
async def consuming(
    url: str, handle: Handler, *, prefetch: int = 100, **others: Any
) -> AsyncIterator[tuple[Consumer[str, str], BrokerClient]]:
    """Consume `callbacks` in this process. The handler gets the body as text."""
    health = Health()
    # The whole topology costs the broker a second of CPU for each test.
    tables = topology().only((others.get("queue", CALLBACKS), SCHEDULER_OUTCOMES))
    publisher = Publisher(url, name="test publisher", topology=tables, health=health)
    facts = FactSender(publisher, url=url, name="test", health=health)
    spec: dict[str, Any] = {
        "queue": CALLBACKS,
        "parse": lambda message: message.body.decode(),
        "handle": handle,
        "policy": lambda _: RetryPolicy(delays=(1,), max_retries=3),
        "report": lambda *_: None,
        "send_facts": facts.send,
    }
    consumer: Consumer[str, str] = Consumer(
        ConsumerSpec(**(spec | others)),
        url=url,
        name="test consumer",
        topology=tables,
        publisher=publisher,
        prefetch=prefetch,
        clock=SystemClock(),
        health=health,
    )
    tasks = [asyncio.create_task(part.run()) for part in (publisher, facts, consumer)]
    try:
        await until(lambda: health.ready)
        async with broker_client(url) as client:
            yield consumer, client
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fact_about(message: Message, *_: Any, owner: str | None = None) -> BaseModel:
    """Make a fact about a message, under the id of the message."""
    return CallbackDead(
        fact_id=message.id,
        at=datetime(2026, 1, 1, tzinfo=UTC),
        callback_id=message.id,
        client_id=None,
        target=None,
        attempt=1,
        reason="r" * 1000,
        owner=owner,
    )


async def queued(publisher: BrokerClient, queue: str, count: int) -> bool:
    """Return whether a queue has so many messages."""
    return await publisher.length(queue) == count
