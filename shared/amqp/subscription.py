"""One consumer of one queue on its own channel. It ends when it no longer receives messages.

A consumer can be dead on a healthy connection. Its queue then looks empty to the process.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiormq.abc import AbstractChannel, DeliveredMessage

from shared.amqp.connection import BrokerConnection, run_until_first_ends, wait_until_lost
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel

# Seconds without a delivery after which the number of ready messages is checked.
IDLE_CHECK_INTERVAL: Final = 15.0


class Subscription:
    """A consumer on one channel, from `start` to `stop`. `subscribe` creates it."""

    def __init__(
        self, queue: str, channel: AbstractChannel, intercepted: InterceptedChannel
    ) -> None:
        self.intercepted = intercepted
        self._queue = queue
        self._channel = channel
        self._tag = ""
        self._last_delivery = 0.0

    async def start(
        self, receive: Callable[[Delivery], None], *, prefetch: int, no_ack: bool = False
    ) -> None:
        """Call `receive` with each delivery, at most `prefetch` unacknowledged at a time.

        With `no_ack`, the broker sends all messages and forgets them.
        """
        loop = asyncio.get_running_loop()

        def received(delivery: Delivery) -> None:
            self._last_delivery = loop.time()
            receive(delivery)

        async def cancelled_by_broker(_: Any) -> None:
            # In its own task: the channel's reader, which calls this, ends with the channel.
            loop.create_task(  # noqa: RUF006 - the channel keeps no other reference
                self._channel.close(ConnectionResetError("the queue was deleted or has moved"))
            )

        self.intercepted.on_delivery = received
        self._channel.on_consumer_cancel_callbacks.add(cancelled_by_broker)
        await self._channel.basic_qos(prefetch_count=prefetch)
        consuming = await self._channel.basic_consume(self._queue, ignore_delivery, no_ack=no_ack)
        self._tag = str(consuming.consumer_tag)
        self._last_delivery = loop.time()

    async def stop(self) -> None:
        """Stop receiving. Earlier deliveries can still be acknowledged."""
        await self._channel.basic_cancel(self._tag)

    async def run(self, *, idle: Callable[[], bool]) -> None:
        """Wait until the channel is lost, or until the consumer is dead.

        It is dead if messages are ready, none is delivered, and the process is `idle`.

        Raises:
            one of CONNECTION_ERRORS: always, with the reason.
        """
        await run_until_first_ends(wait_until_lost(self._channel), self._watch(idle))

    async def _watch(self, idle: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(IDLE_CHECK_INTERVAL)
            if not idle() or loop.time() - self._last_delivery < IDLE_CHECK_INTERVAL:
                continue
            state = await self._channel.queue_declare(
                self._queue, passive=True, timeout=IDLE_CHECK_INTERVAL
            )
            if state.message_count and loop.time() - self._last_delivery >= IDLE_CHECK_INTERVAL:
                raise ConnectionResetError("messages are ready, but none is delivered")


async def subscribe(broker: BrokerConnection, queue: str) -> Subscription:
    """Return a subscription on a new channel. It is not started yet."""
    return Subscription(queue, *await broker.channel(confirms=False))


async def ignore_delivery(_: DeliveredMessage) -> None:
    """Do nothing: aiormq requires a callback, but the interceptor receives the deliveries."""
