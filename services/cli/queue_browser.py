"""Walks through a queue, and gives back what is not taken.

Whoever walks to the end leaves the order as it was, up to 65,535 messages. A quorum queue puts what
is returned behind what was returned before, so that a walk broken off changes it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import click
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity

from shared.amqp import codec
from shared.amqp.connection import BrokerConnection
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel
from shared.amqp.subscription import ignore_delivery

# The most that AMQP lets one consumer hold.
MOST_HELD: Final = 65_535
# Seconds without a message after which the walk ends: another consumer holds the rest. A busy
# broker takes a few to begin when it is to send many.
QUIET: Final = 10.0
# Seconds before the channel closes after acks: where many come at once, RabbitMQ's channel hands
# them to a quorum queue bit by bit, and forgets the rest when it closes. There is no signal.
SETTLING: Final = 0.5
# Seconds in which the broker takes back what was not taken; 40,000 messages took it two.
RETURN: Final = 10.0


class QueueBrowser:
    """An iterator over deliveries, at most as many as there were when the walk began."""

    def __init__(
        self,
        channel: AbstractChannel,
        intercepted: InterceptedChannel,
        queue: str,
        total: int,
        hold: int,
    ) -> None:
        self.total = total
        self._hold = hold
        self._channel = channel
        self._tapped = intercepted
        self._queue = queue
        self._here: asyncio.Queue[Delivery] = asyncio.Queue()
        self.taken = 0
        self._given = 0
        self._room = 0
        intercepted.on_delivery = self._here.put_nowait

    def __aiter__(self) -> "QueueBrowser":
        return self

    async def __anext__(self) -> Delivery:
        if self._given == self.total:
            raise StopAsyncIteration
        if self._given - self.taken >= self._room:
            await self._channel.basic_consume(self._queue, ignore_delivery)
            self._room += self._hold
        try:
            async with asyncio.timeout(QUIET):  # 3.11's wait_for may swallow a cancellation
                delivery = await self._here.get()
        except TimeoutError:
            raise StopAsyncIteration from None
        self._given += 1
        return delivery

    def take(self, delivery: Delivery) -> None:
        """Remove the message from the queue."""
        self.taken += 1
        self._tapped.write(codec.encode_ack(self._tapped.number, delivery.tag, multiple=False))


@asynccontextmanager
async def browse_queue(
    link: BrokerConnection, queue: str, *, hold: int = MOST_HELD
) -> AsyncIterator[QueueBrowser]:
    """A walk; at its end, what was not taken is back in the queue.

    `hold` is how many messages the walk expects to have given and not taken at a time.

    Raises:
        click.ClickException: there is no such queue.
    """
    channel, intercepted = await link.channel(confirms=False)
    try:
        state = await channel.queue_declare(queue, passive=True)
    except ChannelNotFoundEntity:
        raise click.ClickException(
            f"the queue {queue!r} is not there: `ringback topology declare` makes it."
        ) from None
    walk = QueueBrowser(channel, intercepted, queue, state.message_count or 0, min(hold, MOST_HELD))
    await channel.basic_qos(prefetch_count=min(hold, MOST_HELD))
    try:
        yield walk
    finally:
        if walk.taken:
            await asyncio.sleep(SETTLING)
        await channel.close()
        await _returned(link, queue, walk.total - walk.taken)


async def _returned(link: BrokerConnection, queue: str, count: int) -> None:
    """Wait until so many messages are ready in the queue, or for `RETURN` seconds."""
    channel = await link.connection.channel(publisher_confirms=False)
    with suppress(TimeoutError):
        async with asyncio.timeout(RETURN):
            while (  # noqa: ASYNC110 - the broker gives no signal
                (await channel.queue_declare(queue, passive=True)).message_count or 0
            ) < count:
                await asyncio.sleep(0.02)
