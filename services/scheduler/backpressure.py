"""Bounds the callbacks in the queue `callbacks`; the others wait in PostgreSQL, in a fair order."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

from services.scheduler import metrics
from shared.errors import InfrastructureError

logger = logging.getLogger(__name__)

# Seconds between two counts while the queue is full.
COUNT_INTERVAL: Final = 0.02


class CallbackQueue:
    """The queue `callbacks`, which is full when it contains `max_queued` messages.

    A count of the broker and the callbacks published since then are an upper bound, so a count is
    necessary only when they approach the limit. It costs a round trip.
    """

    def __init__(self, count: Callable[[], Awaitable[int]], max_queued: int) -> None:
        self._count = count
        self._max_queued = max_queued
        self._queued = max_queued  # unknown, so the first use counts
        self._unconfirmed = 0
        self._counted_at = float("-inf")
        self._counting = asyncio.Lock()

    def publishing(self, callbacks: int) -> None:
        """Add callbacks that are about to be published."""
        self._queued += callbacks
        self._unconfirmed += callbacks

    def published(self, callbacks: int) -> None:
        """Note the broker's answer for callbacks: the next count contains them."""
        self._unconfirmed -= callbacks

    async def room(self) -> int:
        """Return how many callbacks may be published now: 0, or at least a quarter of the limit."""
        async with self._counting:
            if not self._room() and monotonic() - self._counted_at >= COUNT_INTERVAL:
                # Unconfirmed callbacks may be missing in the count, and more may follow meanwhile.
                self._queued = self._unconfirmed
                try:
                    count = await self._count()
                except InfrastructureError as error:
                    # Callbacks that are late would be worse than those in an unfair order.
                    logger.info("queue depth unknown: %s", error)
                else:
                    self._queued += count
                self._counted_at = monotonic()
        room = self._room()
        metrics.BACKPRESSURE.set(not room)
        return room

    def _room(self) -> int:
        room = self._max_queued - self._queued
        return room if room >= self._max_queued // 4 else 0
