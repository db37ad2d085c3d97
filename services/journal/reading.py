"""Bounds what one read may take, so that no request holds a connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from shared.postgres.pool import Database

# Milliseconds for one statement. Every read takes less than a tenth of it with ten million entries.
STATEMENT_TIMEOUT: Final = 1000
# Reads in progress in one worker, so that connections remain for the facts and the jobs.
MAX_CONCURRENT: Final = 3
# Without bitmaps, a page is read in the order of an index up to its limit, whatever the statistics
# say. A compiled plan does not pay off in a few milliseconds.
_LIMITS: Final = (
    f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT};"
    " SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off"
)


@asynccontextmanager
async def reading(database: Database) -> AsyncIterator[Any]:
    """Begin a transaction for reads (`asyncpg.Connection`) whose statements end in time.

    Raises:
        StoreConnectionLostError: the database is unavailable, or a statement took too long.
    """
    async with database.transaction() as connection:
        await connection.execute(_LIMITS)
        yield connection
