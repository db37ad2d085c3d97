"""Deletes postings that ended longer ago than the retention, with their messages."""

import asyncio
import logging
from datetime import timedelta
from typing import Final

from services.mailings.store import Store
from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

# Seconds between two runs.
INTERVAL: Final = 60.0
# Messages deleted in one statement, which takes about 20 ms.
BATCH_SIZE: Final = 2000
# Postings deleted in one run.
MAX_POSTINGS: Final = 1000


class Retention:
    """Deletes postings that ended longer ago than `age`."""

    def __init__(self, store: Store, age: timedelta) -> None:
        self._store = store
        self._age = age

    async def run(self) -> None:
        """Delete old postings until cancelled."""
        while True:
            try:
                await self.run_once(MAX_POSTINGS)
            except StoreConnectionLostError as error:
                logger.warning("old postings not deleted: %s", error)
            await asyncio.sleep(INTERVAL)

    async def run_once(self, limit: int) -> int:
        """Delete up to `limit` old postings, and return their number."""
        old = await self._store.ended_before(self._age, limit)
        for posting_id in old:
            while await self._store.delete_messages(posting_id, BATCH_SIZE):
                pass
            # If another process is deleting the rest, it deletes the posting, too.
            await self._store.delete_posting(posting_id)
        return len(old)
