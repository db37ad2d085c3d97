"""Forgets the keys of events that were seen longer ago than the retention."""

import asyncio
import logging
from datetime import timedelta
from typing import Final

from services.ingestion.store import Store
from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

# Seconds between two rounds, so that each has little to do.
EVERY: Final = 60.0
# Keys deleted in one statement: some 20 ms, in which nobody waits.
BATCH: Final = 2000


class Retention:
    """Keeps keys for `age`, and a little longer."""

    def __init__(self, store: Store, age: timedelta) -> None:
        self._store = store
        self._age = age

    async def run(self) -> None:
        """Prune until cancelled."""
        while True:
            try:
                await self.run_once()
            except StoreConnectionLostError as error:
                logger.warning("old keys stay for now: %s", error)
            await asyncio.sleep(EVERY)

    async def run_once(self) -> int:
        """Forget all that are old; how many it were."""
        gone = 0
        while deleted := await self._store.prune(self._age, BATCH):
            gone += deleted
        return gone
