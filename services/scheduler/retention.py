"""Deletion of old finished callbacks, and creation of the partitions that hold them."""

import asyncio
import logging
from datetime import timedelta
from typing import Final

import asyncpg

from services.scheduler.partitions import Partitions
from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

# Seconds between two rounds. Partitions span a day, so an hour is precise enough.
ROUND_INTERVAL: Final = 3600.0
# Seconds until a failed round is repeated.
RETRY_DELAY: Final = 10.0
# Callbacks deleted in one statement.
DELETE_BATCH_SIZE: Final = 5000


class Retention:
    """Deletes callbacks that finished longer than `retention` ago, and frees their keys."""

    def __init__(self, partitions: Partitions, retention: timedelta) -> None:
        self._partitions = partitions
        self._retention = retention

    async def run(self) -> None:
        """Create and drop partitions until cancelled."""
        while True:
            try:
                await self.run_once()
            except (StoreConnectionLostError, asyncpg.PostgresError) as error:
                logger.warning(
                    "Cannot create or drop partitions: %s. Retrying in %.0f s.", error, RETRY_DELAY
                )
                await asyncio.sleep(RETRY_DELAY)
            else:
                await asyncio.sleep(ROUND_INTERVAL)

    async def run_once(self) -> list[str]:
        """Run one round, and return the dropped partitions."""
        await self._partitions.create()
        expired = await self._partitions.expired(self._retention)
        for name in expired:
            while await self._partitions.delete(name, DELETE_BATCH_SIZE):
                pass
            await self._partitions.drop(name)
            logger.info("partition dropped", extra={"partition": name})
        return expired
