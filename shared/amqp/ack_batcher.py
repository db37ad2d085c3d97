"""Acknowledges deliveries in batches, after the facts about them are sent."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from pydantic import BaseModel

from shared.amqp import codec
from shared.amqp.frame_interceptor import InterceptedChannel


class AckBatcher:
    """The outstanding acks and facts of one channel.

    `send_facts` publishes, and waits until the owners' facts are confirmed, however long that
    takes. Meanwhile the next batch collects.
    """

    def __init__(
        self,
        channel: InterceptedChannel,
        send_facts: Callable[[Sequence[BaseModel]], Awaitable[None]],
    ) -> None:
        self.lost = False  # the channel is lost: the broker delivers its messages again
        self._channel = channel
        self._send_facts = send_facts
        self._tags: list[int] = []
        self._facts: list[BaseModel] = []
        self._pending = asyncio.Event()
        self._outstanding: OrderedDict[int, None] = OrderedDict()  # ascending; at most the prefetch
        self._flushing = asyncio.Lock()

    def started(self, tag: int) -> None:
        """Record a delivery, in the order of the tags. Each of the methods below ends one."""
        self._outstanding[tag] = None

    def done(
        self, tag: int, fact: BaseModel | None = None, letter: BaseModel | None = None
    ) -> None:
        """Acknowledge the delivery with the next batch, once its facts are sent."""
        self._tags.append(tag)
        if fact is not None:
            self._facts.append(fact)
        if letter is not None:
            self._facts.append(letter)
        self._pending.set()

    def requeue(self, tag: int) -> None:
        """Return the delivery to its queue at once."""
        self._return(tag, codec.encode_requeue)

    def reject(self, tag: int) -> None:
        """Return the delivery to its queue at once, and count that towards the delivery limit."""
        self._return(tag, codec.encode_reject)

    async def run(self, interval: float) -> None:
        """Flush at most once per `interval` seconds, until cancelled."""
        while True:
            await self._pending.wait()
            await asyncio.sleep(interval)
            await self.flush()

    async def flush(self) -> None:
        """Publish the collected facts, then acknowledge the collected deliveries."""
        async with self._flushing:
            self._pending.clear()
            tags, self._tags = self._tags, []
            facts, self._facts = self._facts, []
            if facts:
                await self._send_facts(facts)
            if tags and not self.lost:
                self._ack(tags)

    def _return(self, tag: int, encode: Callable[[int, int], bytes]) -> None:
        if not self.lost:
            self._channel.write(encode(self._channel.number, tag))
            del self._outstanding[tag]

    def _ack(self, tags: list[int]) -> None:
        """Acknowledge with few frames: one for the unbroken run of tags, one for each other tag.

        The broker knows only outstanding tags, so the run is acknowledged by its highest new tag.
        """
        for tag in tags:
            del self._outstanding[tag]
        low = next(iter(self._outstanding), None)
        number = self._channel.number
        run = tags if low is None else [tag for tag in tags if tag < low]
        others = () if low is None else (tag for tag in tags if tag > low)
        frames = [codec.encode_ack(number, tag, multiple=False) for tag in others]
        if run:
            frames.append(codec.encode_ack(number, max(run), multiple=True))
        self._channel.write(b"".join(frames))
