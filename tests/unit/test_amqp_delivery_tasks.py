"""Tasks of deliveries: a process that drains consumes nothing more, whenever it began to drain."""

import asyncio
from collections.abc import Callable
from typing import cast

from shared.amqp.delivery_tasks import DeliveryTasks
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.subscription import Subscription


class SubscriptionUnderTest:
    """Starts when `opened` is set."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.starting = asyncio.Event()
        self.opened = asyncio.Event()

    async def start(self, _: Callable[[Delivery], None], *, prefetch: int) -> None:
        self.calls.append(f"start {prefetch}")
        self.starting.set()
        await self.opened.wait()

    async def stop(self) -> None:
        self.calls.append("stop")

    async def run(self, *, idle: Callable[[], bool]) -> None:
        assert idle() is False
        self.calls.append("run")


async def process(_: Delivery) -> None:
    raise AssertionError


async def consume(tasks: DeliveryTasks, subscription: SubscriptionUnderTest) -> None:
    await tasks.consume(
        cast("Subscription", subscription),
        process,
        started=lambda: None,
        ended=lambda *_: None,
        prefetch=10,
    )


async def test_row_32_a_stop_before_the_start_prevents_it() -> None:
    tasks, subscription = DeliveryTasks(), SubscriptionUnderTest()
    await tasks.stop()
    await asyncio.wait_for(consume(tasks, subscription), 5)
    assert subscription.calls == []


async def test_row_32_a_stop_during_the_start_stops_the_subscription() -> None:
    tasks, subscription = DeliveryTasks(), SubscriptionUnderTest()
    consuming = asyncio.create_task(consume(tasks, subscription))
    await asyncio.wait_for(subscription.starting.wait(), 5)
    await tasks.stop()
    subscription.opened.set()
    await asyncio.wait_for(consuming, 5)
    assert subscription.calls == ["start 10", "stop", "run"]


async def test_finding_b17_a_connection_that_is_lost_at_shutdown_does_not_stop_the_drain() -> None:
    class LostSubscription(SubscriptionUnderTest):
        async def stop(self) -> None:
            raise ConnectionResetError("the channel was closed")

    tasks, subscription = DeliveryTasks(), LostSubscription()
    consuming = asyncio.create_task(consume(tasks, subscription))
    await asyncio.wait_for(subscription.starting.wait(), 5)
    subscription.opened.set()
    subscription.run = lambda **_: tasks.stop()  # type: ignore[method-assign]
    await asyncio.wait_for(consuming, 5)
    assert tasks.draining
