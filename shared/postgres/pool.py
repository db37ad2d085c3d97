"""A pool of connections to PostgreSQL in which nobody waits without a bound.

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
    describe_error,
    without_password,
)
from shared.postgres.migrations import Schema, SchemaOutdatedError, pending
from shared.process.health import Health

__all__ = ["Database", "StoreConnectionLostError"]

logger = logging.getLogger(__name__)

PART: Final = "database"
# Connections for one process: a few more than a database of some cores works on at a time.
POOL_SIZE: Final = 8
# Seconds that a caller waits for a connection, also while the database starts again.
ACQUIRE_TIMEOUT: Final = 3.0
# Seconds for one statement; then the server breaks it off. Below the 5 s in which the pool must be
# whole again when a backend hangs. A transaction may `SET LOCAL statement_timeout`.
STATEMENT_TIMEOUT: Final = 4.0
# Seconds after that until we take the server for dead and the connection for lost.
GRACE: Final = 0.5
# Seconds to give a connection back, or to roll back, before it is thrown away.
RELEASE_TIMEOUT: Final = 0.5
# Seconds after which the server gives up a transaction whose client does nothing: one that is
# suspended or unreachable would keep its rows locked.
IDLE_IN_TRANSACTION_TIMEOUT: Final = 10
# Seconds between two rounds in which every idle connection is asked, and for its answer.
WATCH_INTERVAL: Final = 2.0
PROBE_TIMEOUT: Final = 1.0
# Seconds: the longest wait between two tries to connect. Many services come back at once, so it is
# random; short, since recovery is within 5 s.
MAX_BACKOFF: Final = 2.0
# Seconds after the last write that found the disk full, in which the database is not ready.
MAX_TIME_FULL: Final = 5.0


class Database:
    """One pool, kept whole by `run`; `database` in `health`.

    `schema` is what must be up to date in it. A lost, slow or full database raises
    StoreConnectionLostError within ACQUIRE_TIMEOUT, or
    STATEMENT_TIMEOUT and a bit for each statement; it is
    found again by itself.
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
        self._works = asyncio.Event()
        self._look = asyncio.Event()
        self._full_until = 0.0
        self._fault = "not connected yet"
        health.expect(PART)

    async def run(self) -> None:
        """Connect, and keep the pool whole until cancelled.

        Raises:
            SchemaOutdatedError: the schema lacks migrations.
            SchemaMismatch: the schema's history is another than this code's.
        """
        self._pool = await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._size,
            timeout=CONNECT_TIMEOUT,
            command_timeout=STATEMENT_TIMEOUT + GRACE,
            reset=_nothing_to_reset,
            server_settings={
                "application_name": self._name,
                "statement_timeout": f"{STATEMENT_TIMEOUT * 1000:.0f}",
                "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT * 1000}",
            },
        )
        try:
            while True:
                await self._until_it_works()
                self._look.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_INTERVAL):
                        await self._look.wait()
        finally:
            self._works.clear()
            self._pool.terminate()

    async def ready(self) -> None:
        """Wait until the database works and its schema is up to date."""
        await self._works.wait()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A transaction on a connection (`asyncpg.Connection`); rolled back when the body raises.

        Raises:
            StoreConnectionLostError: the database is unavailable. If it is raised at the end,
                it is unknown whether the transaction was committed.
        """
        async with self._used(begin=True) as (connection, transaction):
            try:
                yield connection
            except BaseException:
                await _roll_back(connection, transaction)
                raise
            await transaction.commit()

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """The rows (`asyncpg.Record`) of one statement, which is a transaction of its own.

        Raises:
            StoreConnectionLostError: the database is lost, slow or full; the effect is unknown.
        """
        async with self._used() as (connection, _):
            rows: list[Any] = await connection.fetch(sql, *args)
        return rows

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        """As `fetch`, the first row only; None if there is none."""
        async with self._used() as (connection, _):
            return await connection.fetchrow(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        """As `fetch`, without rows; PostgreSQL's word for what was done, such as `UPDATE 3`."""
        async with self._used() as (connection, _):
            status: str = await connection.execute(sql, *args)
        return status

    @asynccontextmanager
    async def _used(self, *, begin: bool = False) -> AsyncIterator[tuple[Any, Any]]:
        connection, transaction = await self._acquire(begin=begin)
        try:
            yield connection, transaction
        except DATABASE_ERRORS as error:
            if not isinstance(error, asyncpg.PostgresError):  # it was not the server that spoke
                _discard(connection)
            raise self._lost(error) from error
        except asyncpg.InterfaceError as error:
            if not _closed(connection):
                raise
            raise self._lost(error) from error
        finally:
            await self._release(connection)

    async def _acquire(self, *, begin: bool) -> tuple[Any, Any]:
        """A connection and its transaction, begun if wanted; another if it is found to be lost."""
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT):
                while True:
                    await self._works.wait()
                    try:
                        connection = await self._pool.acquire()
                    except CONNECT_ERRORS as error:
                        self._doubt(error)
                        continue
                    transaction = connection.transaction()
                    if not begin or await self._begun(connection, transaction):
                        return connection, transaction
        except TimeoutError:
            if self._works.is_set():
                raise StoreConnectionLostError(
                    f"all {self._size} connections to the database are in use"
                ) from None
            raise StoreConnectionLostError(self._fault) from None

    async def _begun(self, connection: Any, transaction: Any) -> bool:
        """Begin a transaction; False if the connection is lost. Nothing was done on it yet."""
        begun = False
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await transaction.start()
            begun = True
        except CONNECT_ERRORS:
            self._look.set()
        finally:
            if not begun:
                _discard(connection)
        return begun

    async def _release(self, connection: Any) -> None:
        try:
            await self._pool.release(connection, timeout=RELEASE_TIMEOUT)
        except CONNECT_ERRORS:
            _discard(connection)

    def _doubt(self, error: BaseException) -> None:
        """No connection can be made: nobody tries any more until we have seen it work."""
        self._fault = f"no connection to {without_password(self._url)}: {describe_error(error)}"
        self._works.clear()
        self._look.set()

    def _lost(self, error: BaseException) -> StoreConnectionLostError:
        """What to raise for an error of a connection in use."""
        if isinstance(error, asyncpg.DiskFullError):
            self._full_until = asyncio.get_running_loop().time() + MAX_TIME_FULL
            self._health.down(PART, describe_error(error))
        self._look.set()
        return StoreConnectionLostError(describe_error(error))

    async def _until_it_works(self) -> None:
        """Replace idle connections that do not answer, and if none does, try until one does."""

        def tell(details: Any) -> None:
            self._doubt(details["exception"])
            self._health.down(PART, self._fault)

        @backoff.on_exception(
            backoff.expo,
            CONNECT_ERRORS,
            factor=0.1,
            max_value=MAX_BACKOFF,
            on_backoff=tell,
            logger=None,
        )
        async def ask() -> None:
            await self._probe(first=not self._works.is_set())

        idle = self._pool.get_idle_size()
        answers = await asyncio.gather(
            *(self._probe(first=False) for _ in range(idle)), return_exceptions=True
        )
        if not self._works.is_set() or (None not in answers and self._room()):
            await ask()
        self._works.set()
        if asyncio.get_running_loop().time() >= self._full_until:
            self._health.up(PART)

    def _room(self) -> bool:
        """Whether a connection can be had without waiting for whoever works."""
        return bool(self._pool.get_idle_size() or self._pool.get_size() < self._size)

    async def _probe(self, *, first: bool) -> None:
        """Ask the next connection; one that does not answer is thrown away."""
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
    """Throw it away without a word to the server; its place in the pool is free then."""
    with suppress(asyncpg.InterfaceError):  # the pool has done so
        connection.terminate()


def _closed(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool has thrown it away
        return True


async def _nothing_to_reset(_: Any) -> None:
    """Spares each use the trip that would reset what nobody sets."""
