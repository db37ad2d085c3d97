"""Reads the messages of a queue, and puts back those that are not removed.

Reading a queue to its end keeps its order, up to 65,535 messages. Stopping earlier changes the
order, because a quorum queue appends returned messages behind those that were returned before.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity

from shared.amqp import codec
from shared.amqp.connection import BrokerConnection
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel
from shared.amqp.subscription import ignore_delivery
from shared.errors import RingbackError

# AMQP's maximum for one consumer.
MAX_PREFETCH: Final = 65_535
# Bytes that are received ahead. Each consumer holds its messages until the end, so a long queue
# needs another one for each prefetch window. A million small messages need 17.
MAX_BYTES_AHEAD: Final = 64 << 20
# Seconds without a message after which reading ends: another consumer holds the others. A busy
# broker needs a few seconds to start a large transfer.
IDLE_TIMEOUT: Final = 10.0
# Seconds between the last ack and closing the channel. RabbitMQ passes many acks to a quorum queue
# in parts, drops the rest when the channel closes, and sends no signal.
ACK_DELAY: Final = 0.5
# Seconds for the broker to return messages to the queue. 40,000 of them took two.
RETURN_TIMEOUT: Final = 10.0


class QueueMissingError(RingbackError):
    """The queue does not exist."""


class QueueBrowser:
    """An iterator over deliveries, at most as many as were ready at the start."""

    def __init__(
        self,
        channel: AbstractChannel,
        intercepted: InterceptedChannel,
        queue: str,
        total: int,
        prefetch: int,
    ) -> None:
        self.total = total
        self.removed = 0
        self._prefetch = prefetch
        self._channel = channel
        self._intercepted = intercepted
        self._queue = queue
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        self._received = self._bytes = 0
        self._capacity = 0
        intercepted.on_delivery = self._deliveries.put_nowait

    def __aiter__(self) -> "QueueBrowser":
        return self

    async def __anext__(self) -> Delivery:
        if self._received == self.total:
            raise StopAsyncIteration
        if self._received - self.removed >= self._capacity:
            await self._add_consumer()
        try:
            async with asyncio.timeout(IDLE_TIMEOUT):  # wait_for of 3.11 can miss a cancellation
                delivery = await self._deliveries.get()
        except TimeoutError:
            raise StopAsyncIteration from None
        self._received += 1
        self._bytes += len(delivery.body)
        return delivery

    @property
    def has_received(self) -> bool:
        """Whether the next message is here, so that reading it does not wait."""
        return self._received < self.total and not self._deliveries.empty()

    @property
    def is_complete(self) -> bool:
        """Whether all messages were read, rather than held by another consumer."""
        return self._received == self.total

    def remove(self, delivery: Delivery) -> None:
        """Remove the message from the queue."""
        self.removed += 1
        channel = self._intercepted
        channel.write(codec.encode_ack(channel.number, delivery.tag, multiple=False))

    async def _add_consumer(self) -> None:
        """Receive more messages: of those after the first window, as many as fit into memory."""
        if self._received:
            fitting = MAX_BYTES_AHEAD * self._received // max(self._bytes, 1)
            self._prefetch = min(max(fitting, self._prefetch), MAX_PREFETCH)
        await self._channel.basic_qos(prefetch_count=self._prefetch)
        await self._channel.basic_consume(self._queue, ignore_delivery)
        self._capacity += self._prefetch


@asynccontextmanager
async def browse_queue(
    broker: BrokerConnection, queue: str, *, prefetch: int = MAX_PREFETCH
) -> AsyncIterator[QueueBrowser]:
    """Open a browser. When the block ends, all messages not removed are back in the queue.

    `prefetch` is the number of messages that the caller reads before it removes one. It grows with
    the queue if its messages are small.

    Raises:
        QueueMissingError: the queue does not exist.
    """
    channel, intercepted = await broker.channel(confirms=False)
    try:
        state = await channel.queue_declare(queue, passive=True)
    except ChannelNotFoundEntity:
        raise QueueMissingError(
            f"Cannot read the queue {queue!r}: it does not exist."
            " Declare it with `ringback topology declare`."
        ) from None
    prefetch = min(prefetch, MAX_PREFETCH)
    browser = QueueBrowser(channel, intercepted, queue, state.message_count or 0, prefetch)
    try:
        yield browser
    finally:
        if browser.removed:
            await asyncio.sleep(ACK_DELAY)
        await channel.close()
        await _wait_until_returned(broker, queue, browser.total - browser.removed)


async def _wait_until_returned(broker: BrokerConnection, queue: str, count: int) -> None:
    """Wait until `count` messages are ready in the queue, at most `RETURN_TIMEOUT` seconds."""
    channel = await broker.connection.channel(publisher_confirms=False)
    with suppress(TimeoutError):
        async with asyncio.timeout(RETURN_TIMEOUT):
            while (  # noqa: ASYNC110 - the broker sends no signal
                (await channel.queue_declare(queue, passive=True)).message_count or 0
            ) < count:
                await asyncio.sleep(0.02)
