"""Bounds the callbacks in the queue `callbacks`; the others wait in PostgreSQL, in a fair order."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

from shared.errors import InfrastructureError

logger = logging.getLogger(__name__)

# Seconds between two counts while the queue is full.
COUNT_INTERVAL: Final = 0.02
# Seconds after which some callbacks are published although the queue is full. Other producers may
# keep it full forever.
MAX_PAUSE: Final = 5.0


class CallbackQueue:
    """The queue `callbacks`, which is full when it contains `max_queued` messages.

    The callbacks published since the last count are all assumed to be in the queue still. So a
    count, which costs a round trip, is only necessary when they approach the limit. `observe` gets
    whether the queue is full.
    """

    def __init__(
        self,
        count: Callable[[], Awaitable[int]],
        max_queued: int,
        observe: Callable[[bool], None],
    ) -> None:
        self._count = count
        self._observe = observe
        self._max_queued = max_queued
        self._queued = max_queued  # unknown, so the first use counts
        self._counted_at = float("-inf")
        self._opened_at = monotonic()
        self._counting = asyncio.Lock()

    def publishing(self, callbacks: int) -> None:
        """Add callbacks that are about to be published."""
        self._queued += callbacks

    async def room(self) -> int:
        """Return how many callbacks may be published now: 0, or at least a quarter of the limit.

        While the queue stays full, it is half of the limit once in `MAX_PAUSE` seconds.
        """
        async with self._counting:
            if not self._room() and monotonic() - self._counted_at >= COUNT_INTERVAL:
                self._queued = 0  # some may be published during the count
                try:
                    count = await self._count()
                except InfrastructureError as error:
                    # Callbacks that are late would be worse than those in an unfair order.
                    logger.info("queue depth unknown: %s", error)
                else:
                    self._queued += count
                self._counted_at = monotonic()
        room = self._room()
        self._observe(not room)
        if not room and monotonic() - self._opened_at >= MAX_PAUSE:
            room = self._max_queued // 2
        if room:
            self._opened_at = monotonic()
        return room

    def _room(self) -> int:
        room = self._max_queued - self._queued
        return room if room >= self._max_queued // 4 else 0
