"""Keeps the history in daily partitions: makes those of the days ahead, drops the old ones."""

import asyncio
import logging
from datetime import timedelta
from typing import Final
from uuid import UUID

import asyncpg

from services.scheduler.store import Store
from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

# Seconds between two rounds; a partition more or less for an hour is no matter.
EVERY: Final = 3600.0
# Seconds until a round that failed is repeated.
AGAIN: Final = 10.0
# Orders deleted in one statement.
BATCH: Final = 5000


class Retention:
    """Forgets what ended longer ago than `retention`, with its keys."""

    def __init__(self, store: Store, retention: timedelta) -> None:
        self._store = store
        self._retention = retention

    async def run(self) -> None:
        """Make and drop partitions until cancelled."""
        while True:
            try:
                await self.run_once()
            except (StoreConnectionLostError, asyncpg.PostgresError) as error:
                logger.warning("the history's partitions wait: %s", error)
                await asyncio.sleep(AGAIN)
            else:
                await asyncio.sleep(EVERY)

    async def run_once(self) -> list[str]:
        """One round; the partitions that were dropped."""
        await self._store.make_partitions()
        old = await self._store.old_partitions(self._retention)
        for name in old:
            last: UUID | None = UUID(int=0)
            while last is not None:
                last = await self._store.forget(name, last, BATCH)
            await self._store.drop(name)
            logger.info("dropped %s", name)
        return old
