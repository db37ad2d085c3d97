"""One consumer of one queue on a channel of its own, which ends when it gets no more messages.

A consumer can be dead on a healthy connection, and then looks as if its queue were empty.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiormq.abc import AbstractChannel, DeliveredMessage

from shared.amqp.connection import BrokerConnection, run_until_first_ends, wait_until_lost
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel

# Seconds without a delivery after which it is asked whether messages are waiting.
IDLE_CHECK: Final = 15.0


class Subscription:
    """What a channel gets from a queue, from `start` to `stop`; made by `subscription`."""

    def __init__(
        self, queue: str, channel: AbstractChannel, intercepted: InterceptedChannel
    ) -> None:
        self.intercepted = intercepted
        self._queue = queue
        self._channel = channel
        self._tag = ""
        self._last_delivery = 0.0

    async def start(self, take: Callable[[Delivery], None], *, prefetch: int) -> None:
        """Have `take` called with each delivery, at most `prefetch` unsettled at a time."""
        loop = asyncio.get_running_loop()

        def taken(delivery: Delivery) -> None:
            self._last_delivery = loop.time()
            take(delivery)

        async def cancelled_by_broker(_: Any) -> None:
            # From a task of its own: the channel's reader, which calls this, ends with the channel.
            loop.create_task(  # noqa: RUF006 - the channel holds on to nothing else
                self._channel.close(ConnectionResetError("the queue was deleted or has moved"))
            )

        self.intercepted.on_delivery = taken
        self._channel.on_consumer_cancel_callbacks.add(cancelled_by_broker)
        await self._channel.basic_qos(prefetch_count=prefetch)
        consuming = await self._channel.basic_consume(self._queue, never)
        self._tag = str(consuming.consumer_tag)
        self._last_delivery = loop.time()

    async def stop(self) -> None:
        """Take nothing more; what was taken can still be settled."""
        await self._channel.basic_cancel(self._tag)

    async def lasts(self, *, idle: Callable[[], bool]) -> None:
        """Wait until the channel is lost, or no message comes though some wait and we are `idle`.

        Raises:
            one of CONNECTION_ERRORS: always, with the reason.
        """
        await run_until_first_ends(wait_until_lost(self._channel), self._watch(idle))

    async def _watch(self, idle: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(IDLE_CHECK)
            if not idle() or loop.time() - self._last_delivery < IDLE_CHECK:
                continue
            state = await self._channel.queue_declare(self._queue, passive=True, timeout=IDLE_CHECK)
            if state.message_count and loop.time() - self._last_delivery >= IDLE_CHECK:
                raise ConnectionResetError("messages wait but none is delivered")


async def subscribe(link: BrokerConnection, queue: str) -> Subscription:
    """A subscription on a new channel, not started yet."""
    return Subscription(queue, *await link.channel(confirms=False))


async def never(_: DeliveredMessage) -> None:
    """What aiormq would call; deliveries take the short way."""
