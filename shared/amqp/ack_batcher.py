"""Acknowledges deliveries in batches, after the facts about them are confirmed."""

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from shared.amqp import codec
from shared.amqp.facts import fact_messages
from shared.amqp.frame_interceptor import InterceptedChannel
from shared.amqp.publisher import OutgoingMessage


class AckBatcher:
    """The outstanding acks and facts of one channel.

    `publish_facts` publishes and waits for the confirms, however long that takes. Meanwhile the
    next batch collects.
    """

    def __init__(
        self,
        channel: InterceptedChannel,
        publish_facts: Callable[[list[OutgoingMessage]], Awaitable[None]],
    ) -> None:
        self.lost = False  # the channel is lost: the broker delivers its messages again
        self._channel = channel
        self._publish_facts = publish_facts
        self._tags: list[int] = []
        self._facts: list[BaseModel] = []
        self._pending = asyncio.Event()
        self._low = 1  # all tags below it are finished
        self._finished: set[int] = set()  # and these above it are, too
        self._flushing = asyncio.Lock()

    def done(self, tag: int, fact: BaseModel | None = None) -> None:
        """Acknowledge the delivery with the next batch, once its fact is confirmed."""
        self._tags.append(tag)
        if fact is not None:
            self._facts.append(fact)
        self._pending.set()

    def requeue(self, tag: int) -> None:
        """Return the delivery to its queue at once."""
        if not self.lost:
            self._channel.write(codec.encode_requeue(self._channel.number, tag))
            self._finished.add(tag)

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
                await self._publish_facts(list(fact_messages(facts)))
            if tags and not self.lost:
                self._ack(tags)

    def _ack(self, tags: list[int]) -> None:
        """Acknowledge with few frames: one for the unbroken run of tags, one for each other tag.

        The broker knows only outstanding tags, so the run is acknowledged by its highest new tag.
        """
        self._finished.update(tags)
        while self._low in self._finished:
            self._finished.remove(self._low)
            self._low += 1
        number = self._channel.number
        run = [tag for tag in tags if tag < self._low]
        frames = [codec.encode_ack(number, tag, multiple=False) for tag in tags if tag > self._low]
        if run:
            frames.append(codec.encode_ack(number, max(run), multiple=True))
        self._channel.write(b"".join(frames))
