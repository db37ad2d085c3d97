"""Deletes the keys of events after the retention."""

import asyncio
import logging
from datetime import timedelta
from typing import Final

from services.ingestion.store import Store
from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

# Seconds. Short, so that each round has little to delete.
PRUNE_INTERVAL: Final = 60.0
# Keys deleted in one statement, which takes about 20 ms and blocks no other statement.
PRUNE_BATCH: Final = 2000


class Retention:
    """Deletes keys that are older than `age`."""

    def __init__(self, store: Store, age: timedelta) -> None:
        self._store = store
        self._age = age

    async def run(self) -> None:
        """Prune until cancelled."""
        while True:
            try:
                await self.run_once()
            except StoreConnectionLostError as error:
                logger.warning("old event keys not deleted: %s", error)
            await asyncio.sleep(PRUNE_INTERVAL)

    async def run_once(self) -> int:
        """Delete all old keys and return the number deleted."""
        total = 0
        while deleted := await self._store.prune(self._age, PRUNE_BATCH):
            total += deleted
        return total
