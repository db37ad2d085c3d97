"""Reads a stream: a queue that keeps its messages after they are read, and is read by offset.

RabbitMQ 3.10 and 4 behave the same. A stream needs a prefetch and acks, but acks only allow more
deliveries. Its message count is not exact, and 0 after a restart. A reader that begins after the
end gets nothing, without an error. Offsets have small holes, where RabbitMQ keeps records of its
own.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from aiormq.abc import AbstractChannel

from shared.amqp import codec
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection, wait_until_lost
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel
from shared.amqp.subscription import ignore_delivery
from shared.errors import ContractViolationError

OFFSET: Final = "x-stream-offset"
# Messages of the last chunk that `last_message` reads at a time, and seconds that it waits.
_LAST_PREFETCH: Final = 1000
_LAST_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A message of a stream. `properties` are empty if they are malformed."""

    offset: int
    tag: int
    properties: Properties
    body: bytes


class Stream:
    """A reader of one stream on its own channel. `open_stream` creates it."""

    def __init__(
        self, queue: str, channel: AbstractChannel, intercepted: InterceptedChannel
    ) -> None:
        self._queue = queue
        self._channel = channel
        self._intercepted = intercepted

    async def start(
        self,
        offset: int | Literal["first", "last", "next"],
        receive: Callable[[StreamMessage], None],
        *,
        prefetch: int,
    ) -> None:
        """Call `receive` with each message from `offset` on, at most `prefetch` without an ack."""
        self._intercepted.on_delivery = lambda delivery: receive(_message(delivery))
        self._channel.on_consumer_cancel_callbacks.add(self._cancelled)
        await self._channel.basic_qos(prefetch_count=prefetch)
        await self._channel.basic_consume(self._queue, ignore_delivery, arguments={OFFSET: offset})

    async def count(self) -> int:
        """Return how many messages the broker reports. It is 0 for seconds after a restart."""
        state = await self._channel.queue_declare(self._queue, passive=True)
        return state.message_count or 0

    def acknowledge(self, tag: int) -> None:
        """Allow more deliveries, as many as there were up to this one."""
        self._intercepted.write(codec.encode_ack(self._intercepted.number, tag, multiple=True))

    async def run(self) -> None:
        """Wait until the channel is lost.

        Raises:
            one of CONNECTION_ERRORS: always, with the reason.
        """
        await wait_until_lost(self._channel)

    async def close(self) -> None:
        """Stop reading."""
        await self._channel.close()

    async def _cancelled(self, _: object) -> None:
        # In its own task: the channel's reader, which calls this, ends with the channel.
        asyncio.get_running_loop().create_task(
            self._channel.close(ConnectionResetError("the stream was deleted or has moved"))
        )


async def open_stream(broker: BrokerConnection, queue: str) -> Stream:
    """Return a reader on a new channel. It is not started yet."""
    return Stream(queue, *await broker.channel(confirms=False))


async def last_message(broker: BrokerConnection, queue: str) -> StreamMessage | None:
    """Return the last message of a stream; None if it has none."""
    stream = await open_stream(broker, queue)
    received: asyncio.Queue[StreamMessage] = asyncio.Queue()
    last: StreamMessage | None = None
    try:
        await stream.start("last", received.put_nowait, prefetch=_LAST_PREFETCH)
        async with asyncio.timeout(_LAST_TIMEOUT):
            while True:
                last = await received.get()
                stream.acknowledge(last.tag)
                if received.empty():  # the first chunk may be followed by newer ones
                    await asyncio.sleep(_LAST_TIMEOUT / 20)
                    if received.empty():
                        break
    except TimeoutError:
        pass
    finally:
        await stream.close()
    return last


def _message(delivery: Delivery) -> StreamMessage:
    try:
        properties = codec.decode_properties(delivery.header)
    except ContractViolationError:
        return StreamMessage(-1, delivery.tag, Properties(), delivery.body)
    offset = (properties.headers or {}).get(OFFSET)
    offset = offset if isinstance(offset, int) else -1
    return StreamMessage(offset, delivery.tag, properties, delivery.body)
