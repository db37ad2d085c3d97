"""Deletion of old finished callbacks, and creation of the partitions that hold them."""

import logging
from datetime import timedelta
from typing import Final

from services.scheduler.partitions import Partitions
from shared.postgres.retention import run_rounds

logger = logging.getLogger(__name__)

# Callbacks deleted in one statement.
DELETE_BATCH_SIZE: Final = 5000


class Retention:
    """Deletes callbacks that finished longer than `retention` ago, and frees their keys."""

    def __init__(self, partitions: Partitions, retention: timedelta) -> None:
        self._partitions = partitions
        self._retention = retention

    async def run(self) -> None:
        """Create and drop partitions until cancelled."""
        await run_rounds(self.run_once)

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
