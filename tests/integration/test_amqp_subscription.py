"""A consumer that is dead on a healthy connection is found; one with nothing to do is not."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.amqp import subscription as module
from shared.amqp.connection import CONNECTION_ERRORS, BrokerConnection, connect
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.subscription import Subscription, subscribe

QUEUE = "watched"


@pytest.fixture
async def link(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BrokerConnection]:
    monkeypatch.setattr(module, "IDLE_CHECK", 0.2)
    async with connect(amqp_url, name="test") as link:
        channel = await link.connection.channel()
        await channel.queue_declare(QUEUE, exclusive=True)
        yield link


async def watched(
    link: BrokerConnection, *, messages: int
) -> tuple[Subscription, asyncio.Queue[Delivery]]:
    """A subscription that is given one message and never acks it, with others behind it."""
    channel = await link.connection.channel()
    for _ in range(messages):
        await channel.basic_publish(b"x", routing_key=QUEUE)
    here: asyncio.Queue[Delivery] = asyncio.Queue()
    deliveries = await subscribe(link, QUEUE)
    await deliveries.start(here.put_nowait, prefetch=1)
    return deliveries, here


async def test_trap_4_messages_that_wait_while_none_comes_end_it(link: BrokerConnection) -> None:
    deliveries, here = await watched(link, messages=2)
    await here.get()
    with pytest.raises(CONNECTION_ERRORS, match="messages are ready, but none is delivered"):
        async with asyncio.timeout(5):
            await deliveries.run(idle=lambda: True)


@pytest.mark.parametrize(("messages", "idle"), [(1, True), (2, False)])
async def test_trap_4_an_empty_queue_and_work_in_hand_are_no_trouble(
    link: BrokerConnection, messages: int, *, idle: bool
) -> None:
    deliveries, here = await watched(link, messages=messages)
    await here.get()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await deliveries.run(idle=lambda: idle)
