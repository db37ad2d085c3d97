"""A consumer that is dead on a healthy connection is detected; an idle one is not."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.amqp import subscription as subscription_module
from shared.amqp.connection import CONNECTION_ERRORS, BrokerConnection, connect
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.subscription import Subscription, subscribe

QUEUE = "watched"


@pytest.fixture
async def broker(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BrokerConnection]:
    monkeypatch.setattr(subscription_module, "IDLE_CHECK_INTERVAL", 0.2)
    async with connect(amqp_url, name="test") as broker:
        channel = await broker.connection.channel()
        await channel.queue_declare(QUEUE, exclusive=True)
        yield broker


async def start_consumer(
    broker: BrokerConnection, *, messages: int
) -> tuple[Subscription, asyncio.Queue[Delivery]]:
    """Return a subscription that never acks its first message, and its deliveries."""
    channel = await broker.connection.channel()
    for _ in range(messages):
        await channel.basic_publish(b"x", routing_key=QUEUE)
    deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
    subscription = await subscribe(broker, QUEUE)
    await subscription.start(deliveries.put_nowait, prefetch=1)
    return subscription, deliveries


async def test_trap_4_a_consumer_without_deliveries_ends_if_some_are_ready(
    broker: BrokerConnection,
) -> None:
    subscription, deliveries = await start_consumer(broker, messages=2)
    await deliveries.get()
    with pytest.raises(CONNECTION_ERRORS, match="messages are ready, but none is delivered"):
        async with asyncio.timeout(5):
            await subscription.run(idle=lambda: True)


@pytest.mark.parametrize(("messages", "idle"), [(1, True), (2, False)])
async def test_trap_4_a_consumer_with_an_empty_queue_or_work_in_progress_continues(
    broker: BrokerConnection, messages: int, *, idle: bool
) -> None:
    subscription, deliveries = await start_consumer(broker, messages=messages)
    await deliveries.get()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await subscription.run(idle=lambda: idle)
