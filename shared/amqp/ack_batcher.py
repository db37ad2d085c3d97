"""Settles deliveries in batches: first their facts are confirmed, then they are acked."""

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from shared.amqp import codec
from shared.amqp.facts import fact_messages
from shared.amqp.frame_interceptor import InterceptedChannel
from shared.amqp.publisher import OutgoingMessage


class AckBatcher:
    """What is still to be settled of one channel's deliveries.

    `announce` publishes and waits for the confirms, however long that takes; while it waits, more
    gathers for the next batch.
    """

    def __init__(
        self,
        channel: InterceptedChannel,
        announce: Callable[[list[OutgoingMessage]], Awaitable[None]],
    ) -> None:
        self.lost = False  # the channel is gone: the broker gives its messages out again
        self._channel = channel
        self._announce = announce
        self._tags: list[int] = []
        self._facts: list[BaseModel] = []
        self._some = asyncio.Event()
        self._low = 1  # everything below is settled
        self._settled: set[int] = set()  # and these above it
        self._flushing = asyncio.Lock()

    def done(self, tag: int, fact: BaseModel | None = None) -> None:
        """The delivery is dealt with; ack it once its fact is out."""
        self._tags.append(tag)
        if fact is not None:
            self._facts.append(fact)
        self._some.set()

    def requeue(self, tag: int) -> None:
        """Put the delivery back into its queue at once."""
        if not self.lost:
            self._channel.write(codec.encode_requeue(self._channel.number, tag))
            self._settled.add(tag)

    async def run(self, every: float) -> None:
        """Settle what has gathered, at most once in `every` seconds, until cancelled."""
        while True:
            await self._some.wait()
            await asyncio.sleep(every)
            await self.flush()

    async def flush(self) -> None:
        """Settle all that has gathered."""
        async with self._flushing:
            self._some.clear()
            tags, self._tags = self._tags, []
            facts, self._facts = self._facts, []
            if facts:
                await self._announce(list(fact_messages(facts)))
            if tags and not self.lost:
                self._ack(tags)

    def _ack(self, tags: list[int]) -> None:
        """Ack with few frames: one for the unbroken run from below, one for each other.

        The broker knows only outstanding tags, so the run is acked by the highest one that is new.
        """
        self._settled.update(tags)
        while self._low in self._settled:
            self._settled.remove(self._low)
            self._low += 1
        number = self._channel.number
        run = [tag for tag in tags if tag < self._low]
        frames = [codec.encode_ack(number, tag, multiple=False) for tag in tags if tag > self._low]
        if run:
            frames.append(codec.encode_ack(number, max(run), multiple=True))
        self._channel.write(b"".join(frames))
