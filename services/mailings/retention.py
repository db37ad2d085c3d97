"""Forgets postings that ended longer ago than the retention, with their messages."""

import asyncio
import logging
from datetime import timedelta
from typing import Final

from services.mailings.store import Store
from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

# Seconds between two rounds, so that each has little to do.
EVERY: Final = 60.0
# Messages deleted in one statement: some 20 ms, in which nobody waits.
BATCH: Final = 2000
# Postings of one round.
POSTINGS: Final = 1000


class Retention:
    """Keeps postings for `age` after their end, and a little longer."""

    def __init__(self, store: Store, age: timedelta) -> None:
        self._store = store
        self._age = age

    async def run(self) -> None:
        """Forget until cancelled."""
        while True:
            try:
                await self.run_once(POSTINGS)
            except StoreConnectionLostError as error:
                logger.warning("old postings stay for now: %s", error)
            await asyncio.sleep(EVERY)

    async def run_once(self, limit: int) -> int:
        """Forget old postings, at most `limit`; how many it were."""
        old = await self._store.old(self._age, limit)
        for posting_id in old:
            while not await self._store.forget(posting_id, BATCH):
                pass
        return len(old)
