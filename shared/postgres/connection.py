"""Connecting to PostgreSQL, and which of its errors mean that the database is the trouble."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from shared.errors import InfrastructureError

# Seconds to connect: a server that is there takes milliseconds.
CONNECT_TIMEOUT: Final = 3.0

# Errors that say nothing about the statement: the same one may succeed later.
DATABASE_ERRORS: Final = (
    OSError,
    TimeoutError,
    asyncpg.InternalClientError,  # a connection that was ended between two statements
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,  # disk, memory or connections used up
    asyncpg.OperatorInterventionError,  # shutting down, starting up, terminated, out of time
    asyncpg.PostgresSystemError,  # reading or writing its files failed
    asyncpg.InternalServerError,
    asyncpg.TransactionRollbackError,  # deadlock
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby, after a fail-over
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,  # there is no such database
)
# Those of a connection that is being opened or taken from the pool.
CONNECT_ERRORS: Final = (*DATABASE_ERRORS, asyncpg.InterfaceError)


class StoreConnectionLostError(InfrastructureError):
    """The database is gone, too slow, or full. Whether the last statement took effect is unknown.

    So repeat only what may be repeated.
    """


@asynccontextmanager
async def connect(url: str, *, patience: float | None) -> AsyncIterator[Any]:
    """A connection (`asyncpg.Connection`) outside any pool, for rare work.

    It waits `patience` seconds for each statement; None: as long as it takes.

    Raises:
        StoreConnectionLostError: there is none to be had, or it was lost.
    """
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT, command_timeout=patience)
    except CONNECT_ERRORS as error:
        raise StoreConnectionLostError(
            f"no connection to {without_password(url)}: {describe_error(error)}"
        ) from error
    try:
        yield connection
    except DATABASE_ERRORS as error:
        raise StoreConnectionLostError(
            f"connection to {without_password(url)} lost: {describe_error(error)}"
        ) from error
    finally:
        connection.terminate()


def describe_error(error: BaseException) -> str:
    """What is wrong with the database, in words a person can act on; never with a secret."""
    match error:
        case asyncpg.DiskFullError():
            return f"the database's disk is full, free space on its server ({error})"
        case asyncpg.TooManyConnectionsError():
            return f"{error}: raise max_connections, or run fewer workers"
        case asyncpg.ReadOnlySQLTransactionError():
            return f"{error}: name the primary server, this one is read-only"
        case asyncpg.QueryCanceledError() | TimeoutError():
            return "it does not answer in time"
        case _:
            return str(error) or type(error).__name__


def without_password(url: str) -> str:
    """The URL without its password, and without the query, which may hold one."""
    return re.sub(r"//([^:/@]*):.*@", r"//\1:******@", url.partition("?")[0])
