"""Runs sweeps and replays: at once after a change, and when the next replay is due."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from services.subscriptions.endpoints.replaying import Replays
from services.subscriptions.endpoints.sweeping import Sweeper
from shared.errors import InfrastructureError

logger = logging.getLogger(__name__)

# Seconds until a process continues the work of one that died, or repeats its own after an error.
INTERVAL: Final = 2.0


class EndpointWorker:
    """Runs sweeps and replays. `wake_dispatcher` is called when deliveries have become due."""

    def __init__(
        self, sweeper: Sweeper, replays: Replays, wake_dispatcher: Callable[[], None]
    ) -> None:
        self._sweeper = sweeper
        self._replays = replays
        self._wake_dispatcher = wake_dispatcher
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Work at once: an endpoint or a replay has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._changed.clear()
            try:
                wait = await self.run_once()
            except InfrastructureError as error:
                logger.warning("sweep or replay interrupted, retry scheduled: %s", error)
                wait = INTERVAL
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def run_once(self) -> float:
        """Run a batch of each sweep and replay, and return the seconds until the next batch.

        Raises:
            InfrastructureError: the database or the broker is unavailable.
        """
        swept = await self._sweeper.run_once()
        replayed = await self._replays.run_once()
        if swept or replayed:
            self._wake_dispatcher()
        if swept:
            return 0.0
        next_in = await self._replays.next_in()
        return INTERVAL if next_in is None else min(INTERVAL, max(0.0, next_in))
