"""Where messages go out: as fast as delivery takes them, not later than they may."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from services.mailings.expansion.depth import QueueDepth, QueueDepthUnknownError
from services.mailings.messages import Draft, outgoing
from shared.amqp.publisher import Publisher
from shared.clock import Clock
from shared.errors import InfrastructureError
from shared.registry import CHANNELS

logger = logging.getLogger(__name__)

# Messages published before the next look at the clock and at what waits.
SLICE: Final = 500
# Seconds until publishing is tried again, and between looks at a full queue.
AGAIN: Final = 0.5


class PostingExpiredError(Exception):
    """The posting's time is over."""


class ThrottledPublisher:
    """The queues of delivery."""

    def __init__(self, publisher: Publisher, depths: QueueDepth, clock: Clock) -> None:
        self._publisher = publisher
        self._depths = depths
        self._clock = clock

    async def ready(self) -> None:
        """Wait until publishing is possible."""
        await self._publisher.ready()

    def check_time(self, expires_at: datetime | None) -> None:
        """See to it that nothing goes out too late.

        Raises:
            PostingExpiredError: from now on nothing may.
        """
        if expires_at is not None and self._clock.now() >= expires_at.timestamp():
            raise PostingExpiredError

    async def full(self, channels: Iterable[str]) -> bool:
        """Whether enough waits for delivery by one of these ways, or nobody knows how much."""
        try:
            for channel in channels:
                if await self._depths.too_many(CHANNELS[channel].queue):
                    return True
        except QueueDepthUnknownError as error:
            logger.warning("expansion holds back: %s", error)
            return True
        return False

    async def publish(
        self,
        drafts: Sequence[Draft],
        channels: Iterable[str],
        *,
        expires_at: datetime | None,
        traceparent: str | None,
    ) -> None:
        """Publish until all are confirmed, each under its id as often as it takes.

        Before each slice but the first it waits for room.

        Raises:
            PostingExpiredError: some may not have gone out.
            Unpublishable: a bug.
        """
        for start in range(0, len(drafts), SLICE):
            self.check_time(expires_at)
            while start and await self.full(channels):
                await asyncio.sleep(AGAIN)
                self.check_time(expires_at)
            waiting = drafts[start : start + SLICE]
            while waiting := await self._try(waiting, traceparent):
                await asyncio.sleep(AGAIN)
                await self._publisher.ready()
                self.check_time(expires_at)

    async def _try(self, drafts: Sequence[Draft], traceparent: str | None) -> list[Draft]:
        """Publish each; those that were not confirmed."""
        now = self._clock.now()
        results = await asyncio.gather(
            *(self._publisher.publish(outgoing(draft, traceparent, now)) for draft in drafts),
            return_exceptions=True,
        )
        failed = []
        for draft, error in zip(drafts, results, strict=True):
            if isinstance(error, InfrastructureError):
                failed.append((draft, error))
            elif error is not None:
                raise error
        if failed:
            logger.warning("publishing %d messages again: %s", len(failed), failed[0][1])
        return [draft for draft, _ in failed]
