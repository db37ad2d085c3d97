"""A lock that one process at a time holds for as long as it works.

A lock of a session, on a connection of its own: the pool's connections keep no state. The server
releases it when the process is killed.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import asyncpg

from shared.postgres.connection import StoreConnectionLostError, connect

# Seconds between two attempts to get the lock, which bounds how long nobody works after a crash.
RETRY_INTERVAL: Final = 1.0
# Seconds between two checks that the lock is still held, and for the response.
WATCH_INTERVAL: Final = 2.0
PROBE_TIMEOUT: Final = 4.0

_LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
# The server notices within half a minute that the machine of the holder is gone.
_KEEPALIVE: Final = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4"
)


async def run_exclusively(
    url: str,
    name: str,
    work: Callable[[], Coroutine[Any, Any, None]],
    *,
    waiting: Callable[[], None],
) -> None:
    """Wait for the lock `name`, then work for as long as it is held.

    `waiting` is called while another process holds it. Two processes can work at the same time for
    a moment, after the connection of one is lost. So `work` must compare what it has read in each
    transaction.

    Raises:
        StoreConnectionLostError: the connection that holds the lock was lost.
        the error of `work`.
    """
    async with connect(url, statement_timeout=PROBE_TIMEOUT) as connection:
        await connection.execute(_KEEPALIVE)
        while not await connection.fetchval(_LOCK, name):
            waiting()
            await asyncio.sleep(RETRY_INTERVAL)
        working = asyncio.create_task(work())
        try:
            while not (await asyncio.wait([working], timeout=WATCH_INTERVAL))[0]:
                await _probe(connection)
            working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def _probe(connection: Any) -> None:
    try:
        await connection.execute("SELECT 1")
    except asyncpg.InterfaceError as error:  # it was closed before
        raise StoreConnectionLostError(f"the lock was lost: {error}") from error
