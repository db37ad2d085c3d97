"""Deletion of what is older than the retention, and creation of partitions."""

import logging
from datetime import timedelta
from typing import Final

from services.journal.partitions import Partitions
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.postgres.retention import run_rounds

logger = logging.getLogger(__name__)

_SQL: Final = queries("services.journal")
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
        await run_rounds(self.run_once)

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
