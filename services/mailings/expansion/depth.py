"""Measures how many messages wait for delivery, so that expansion pauses while a queue is full."""

import asyncio
from collections.abc import Callable
from typing import Final

from services.mailings import metrics
from shared.amqp.depth import QueueDepth
from shared.topology import tier_queue, tiers_of

# Seconds for which a count is reused: 1,000 messages at 5,000 a second.
COUNT_LIFETIME: Final = 0.2


class QueueLimit:
    """Limits work queues: one is full when it and its tiers contain `max_waiting` messages."""

    def __init__(
        self, depth: QueueDepth, *, max_waiting: int, monotonic: Callable[[], float]
    ) -> None:
        self._depth = depth
        self._max_waiting = max_waiting
        self._monotonic = monotonic
        self._counts: dict[str, tuple[float, int]] = {}
        self._lock = asyncio.Lock()

    async def is_full(self, queue: str) -> bool:
        """Return whether a work queue and its tiers contain the maximum of messages.

        Raises:
            QueueDepthUnknownError: the broker does not respond.
        """
        async with self._lock:
            at, count = self._counts.get(queue, (float("-inf"), 0))
            if self._monotonic() - at >= COUNT_LIFETIME:
                tiers = (tier_queue(queue, tier) for tier in tiers_of(queue))
                count = await self._depth.count((queue, *tiers))
                self._counts[queue] = self._monotonic(), count
        full = count >= self._max_waiting
        metrics.BACKPRESSURE.labels(queue).set(full)
        return full
