"""Deletion of what is older than the retention, and creation of partitions."""

import asyncio
import logging
from datetime import timedelta
from typing import Final

import asyncpg

from services.journal.partitions import Partitions
from shared.postgres.pool import Database, StoreConnectionLostError
from shared.postgres.queries import queries

logger = logging.getLogger(__name__)

_SQL: Final = queries("services.journal")
# Seconds between two rounds. Partitions span a day, so an hour is precise enough.
ROUND_INTERVAL: Final = 3600.0
# Seconds until a failed round is repeated.
RETRY_DELAY: Final = 10.0
# Rows deleted in one statement.
DELETE_BATCH_SIZE: Final = 5000
_DELETES: Final = ("delete_minutes", "delete_audit", "delete_jobs", "delete_gaps")


class Retention:
    """Deletes entries, requests, minutes, ended jobs, gaps and the audit log after `retention`."""

    def __init__(self, database: Database, partitions: Partitions, retention: timedelta) -> None:
        self._database = database
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
        await self._partitions.create_ahead()
        oldest = await self._partitions.now() - self._retention
        expired = await self._partitions.expired(oldest)
        for name in expired:
            await self._partitions.drop(name)
            logger.info("partition dropped", extra={"partition": name})
        for name in _DELETES:
            while await self._delete(name, oldest) == DELETE_BATCH_SIZE:
                pass
        return expired

    async def _delete(self, name: str, oldest: object) -> int:
        status = await self._database.execute(_SQL[name], oldest, DELETE_BATCH_SIZE)
        return int(status.rpartition(" ")[2])
