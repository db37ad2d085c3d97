"""A pool of connections to PostgreSQL in which every wait is bounded.

A connection keeps no state between two uses: no session settings, no LISTEN, no session locks.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg
import backoff

from shared.postgres.connection import (
    CONNECT_ERRORS,
    CONNECT_TIMEOUT,
    DATABASE_ERRORS,
    StoreConnectionLostError,
    connect_to_primary,
    describe_error,
    rejected_by_server,
)
from shared.postgres.migrations import Schema, SchemaOutdatedError, pending
from shared.postgres.url import without_password
from shared.process.health import Health

__all__ = ["Database", "StoreConnectionLostError"]

logger = logging.getLogger(__name__)

PART: Final = "database"
# Connections of one process: more than a database with a few cores can use at the same time.
POOL_SIZE: Final = 8
# Seconds that a caller waits for a connection, for example while the database restarts.
ACQUIRE_TIMEOUT: Final = 3.0
# Seconds until the server cancels a statement. If a backend hangs, the pool must recover in 5 s. A
# transaction may `SET LOCAL statement_timeout`.
STATEMENT_TIMEOUT: Final = 4.0
# Seconds after STATEMENT_TIMEOUT until the connection counts as lost.
GRACE: Final = 0.5
# Seconds to release a connection or to roll back; then the connection is closed.
RELEASE_TIMEOUT: Final = 0.5
# Seconds after which the server aborts an idle transaction. A client that is suspended or
# unreachable would keep its rows locked.
IDLE_IN_TRANSACTION_TIMEOUT: Final = 10
# Seconds between two probes of all idle connections, and for the response to a probe.
WATCH_INTERVAL: Final = 2.0
PROBE_TIMEOUT: Final = 1.0
# Maximum seconds between two attempts to connect. Recovery must take less than 5 s. The backoff is
# random, because many services reconnect at the same time.
MAX_BACKOFF: Final = 2.0
# Seconds for which the database is not ready after a write found the disk full.
MAX_TIME_FULL: Final = 5.0


class Database:
    """A connection pool that `run` maintains. Its part in `health` is `database`.

    Every use needs an up-to-date `schema`. If the database is lost, slow or full, each call raises
    StoreConnectionLostError after at most ACQUIRE_TIMEOUT plus STATEMENT_TIMEOUT. The pool
    reconnects by itself.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        health: Health,
        size: int = POOL_SIZE,
        schema: Schema | None = None,
    ) -> None:
        self._url = url
        self._name = name
        self._health = health
        self._size = size
        self._schema = schema
        self._pool: Any = None
        self._available = asyncio.Event()
        self._probe_now = asyncio.Event()
        self._full_until = 0.0
        self._fault = "not connected yet"
        health.expect(PART)

    async def run(self) -> None:
        """Connect, and replace lost connections until cancelled.

        Raises:
            SchemaOutdatedError: the schema lacks migrations.
            SchemaMismatchError: the applied migrations differ from the files.
        """
        self._pool = await asyncpg.create_pool(
            self._url,
            connect=connect_to_primary,
            min_size=0,
            max_size=self._size,
            timeout=CONNECT_TIMEOUT,
            command_timeout=STATEMENT_TIMEOUT + GRACE,
            reset=_skip_reset,
            server_settings={
                "application_name": self._name,
                "statement_timeout": f"{STATEMENT_TIMEOUT * 1000:.0f}",
                "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT * 1000}",
            },
        )
        try:
            while True:
                await self._restore()
                self._probe_now.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_INTERVAL):
                        await self._probe_now.wait()
        finally:
            self._available.clear()
            self._pool.terminate()

    async def ready(self) -> None:
        """Wait until the database is available and its schema is up to date."""
        await self._available.wait()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """Begin a transaction on a connection (`asyncpg.Connection`). An exception rolls it back.

        Raises:
            StoreConnectionLostError: the database is unavailable. If the commit raises it, it is
                unknown whether the transaction was committed.
        """
        async with self._use(begin=True) as (connection, transaction):
            try:
                yield connection
            except BaseException:
                await _roll_back(connection, transaction)
                raise
            await transaction.commit()

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Execute a statement as a transaction, and return its rows (`asyncpg.Record`).

        Raises:
            StoreConnectionLostError: the database is unavailable; the effect is unknown.
        """
        async with self._use() as (connection, _):
            rows: list[Any] = await connection.fetch(sql, *args)
        return rows

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        """Execute like `fetch`, and return the first row, or None."""
        async with self._use() as (connection, _):
            return await connection.fetchrow(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        """Execute like `fetch`, and return PostgreSQL's command tag, such as `UPDATE 3`."""
        async with self._use() as (connection, _):
            status: str = await connection.execute(sql, *args)
        return status

    @asynccontextmanager
    async def _use(self, *, begin: bool = False) -> AsyncIterator[tuple[Any, Any]]:
        connection, transaction = await self._acquire(begin=begin)
        try:
            yield connection, transaction
        except DATABASE_ERRORS as error:
            if not isinstance(error, asyncpg.PostgresError) or isinstance(
                error, asyncpg.ReadOnlySQLTransactionError
            ):  # not from the server, or from one that is read-only since a failover
                _discard(connection)
            raise self._lost(error) from error
        except asyncpg.InterfaceError as error:
            if not _closed(connection):
                raise
            raise self._lost(error) from error
        finally:
            await self._release(connection)

    async def _acquire(self, *, begin: bool) -> tuple[Any, Any]:
        """Acquire a connection with its transaction. `begin` begins it on a working one."""
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT):
                while True:
                    await self._available.wait()
                    try:
                        connection = await self._pool.acquire()
                    except CONNECT_ERRORS as error:
                        self._mark_unavailable(error)
                        continue
                    transaction = connection.transaction()
                    if not begin or await self._begin(connection, transaction):
                        return connection, transaction
        except TimeoutError:
            if self._available.is_set():
                raise StoreConnectionLostError(
                    f"all {self._size} connections to the database are in use",
                    effect_unknown=False,
                ) from None
            raise StoreConnectionLostError(self._fault, effect_unknown=False) from None

    async def _begin(self, connection: Any, transaction: Any) -> bool:
        """Begin a transaction; return False if the connection is lost. Retrying is safe."""
        begun = False
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await transaction.start()
            begun = True
        except CONNECT_ERRORS:
            self._probe_now.set()
        finally:
            if not begun:
                _discard(connection)
        return begun

    async def _release(self, connection: Any) -> None:
        try:
            await self._pool.release(connection, timeout=RELEASE_TIMEOUT)
        except CONNECT_ERRORS:
            _discard(connection)

    def _mark_unavailable(self, error: BaseException) -> None:
        """Make callers wait for `_restore` instead of connecting themselves."""
        self._fault = f"no connection to {without_password(self._url)}: {describe_error(error)}"
        self._available.clear()
        self._probe_now.set()

    def _lost(self, error: BaseException) -> StoreConnectionLostError:
        """Return the error to raise when a connection in use fails."""
        if isinstance(error, asyncpg.DiskFullError):
            self._full_until = asyncio.get_running_loop().time() + MAX_TIME_FULL
            self._health.down(PART, describe_error(error))
        self._probe_now.set()
        return StoreConnectionLostError(
            describe_error(error), effect_unknown=not rejected_by_server(error)
        )

    async def _restore(self) -> None:
        """Replace idle connections that do not respond. If all fail, retry until one responds."""

        def report(details: Any) -> None:
            self._mark_unavailable(details["exception"])
            self._health.down(PART, self._fault)

        @backoff.on_exception(
            backoff.expo,
            CONNECT_ERRORS,
            factor=0.1,
            max_value=MAX_BACKOFF,
            on_backoff=report,
            logger=None,
        )
        async def probe() -> None:
            await self._probe(first=not self._available.is_set())

        idle = self._pool.get_idle_size()
        results = await asyncio.gather(
            *(self._probe(first=False) for _ in range(idle)), return_exceptions=True
        )
        if not self._available.is_set() or (None not in results and self._has_free_connection()):
            await probe()
        self._available.set()
        if asyncio.get_running_loop().time() >= self._full_until:
            self._health.up(PART)

    def _has_free_connection(self) -> bool:
        """Return whether a connection can be acquired without waiting."""
        return bool(self._pool.get_idle_size() or self._pool.get_size() < self._size)

    async def _probe(self, *, first: bool) -> None:
        """Probe the next connection, and close it if it does not respond."""
        async with asyncio.timeout(CONNECT_TIMEOUT + PROBE_TIMEOUT):
            connection = await self._pool.acquire()
            try:
                async with asyncio.timeout(PROBE_TIMEOUT):
                    await connection.execute("SELECT 1")
                    if first:
                        await self._check_schema(connection)
            except BaseException:
                _discard(connection)
                raise
            await self._release(connection)

    async def _check_schema(self, connection: Any) -> None:
        if self._schema and (lacking := await pending(connection, self._schema)):
            raise SchemaOutdatedError(self._schema, lacking)


async def _roll_back(connection: Any, transaction: Any) -> None:
    try:
        async with asyncio.timeout(RELEASE_TIMEOUT):
            await transaction.rollback()
    except CONNECT_ERRORS:
        _discard(connection)


def _discard(connection: Any) -> None:
    """Close a connection without notifying the server. Its place in the pool becomes free."""
    with suppress(asyncpg.InterfaceError):  # the pool has closed it
        connection.terminate()


def _closed(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool has closed it
        return True


async def _skip_reset(_: Any) -> None:
    """Skip asyncpg's reset, which costs a round trip: no connection has session state."""
