"""Measures how many callbacks wait."""

import asyncio
from contextlib import suppress
from typing import Final

from services.scheduler import metrics
from services.scheduler.store import Store
from shared.postgres.pool import StoreConnectionLostError

# Seconds between two measurements, as Prometheus usually scrapes.
INTERVAL: Final = 15.0
# Callbacks that are counted: this takes a few milliseconds, with any number of callbacks.
MAX_COUNT: Final = 10_000


class BacklogMonitor:
    """Keeps the gauges of waiting and due callbacks up to date."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            with suppress(StoreConnectionLostError):  # the pool reports it
                await self.run_once()
            await asyncio.sleep(INTERVAL)

    async def run_once(self) -> None:
        """Measure once."""
        backlog = await self._store.backlog(MAX_COUNT)
        metrics.WAITING.set(backlog.waiting)
        metrics.DUE.set(backlog.due)
        metrics.OLDEST_DUE.set(backlog.oldest)
