"""The rounds in which a service creates partitions and deletes what is old."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg

from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

# Seconds between two rounds. Partitions span a day, so an hour is precise enough.
ROUND_INTERVAL: Final = 3600.0
# Seconds until a failed round is repeated.
RETRY_DELAY: Final = 10.0


async def run_rounds(run_once: Callable[[], Awaitable[object]]) -> None:
    """Run a round each hour until cancelled. A round that the database refuses is repeated soon."""
    while True:
        try:
            await run_once()
        except (StoreConnectionLostError, asyncpg.PostgresError) as error:
            logger.warning(
                "Cannot create or drop partitions: %s. Retrying in %.0f s.", error, RETRY_DELAY
            )
            await asyncio.sleep(RETRY_DELAY)
        else:
            await asyncio.sleep(ROUND_INTERVAL)
