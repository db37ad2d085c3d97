"""Connections to PostgreSQL, and the errors that mean that the database is unavailable."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from shared.errors import InfrastructureError

# Seconds to connect. A healthy server takes milliseconds.
CONNECT_TIMEOUT: Final = 3.0

# Errors that are not about the statement: the same statement can succeed later.
DATABASE_ERRORS: Final = (
    OSError,
    TimeoutError,
    asyncpg.InternalClientError,  # a connection was closed between two statements
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,  # out of disk, memory or connections
    asyncpg.OperatorInterventionError,  # shutdown, startup, termination, timeout
    asyncpg.PostgresSystemError,  # file system errors
    asyncpg.InternalServerError,
    asyncpg.TransactionRollbackError,  # deadlock
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby, after a fail-over
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,  # the database does not exist
)
# Errors while a connection is opened or acquired.
CONNECT_ERRORS: Final = (*DATABASE_ERRORS, asyncpg.InterfaceError)


class StoreConnectionLostError(InfrastructureError):
    """The database is unavailable, too slow, or full.

    The effect of the last statement may be unknown, so repeat only idempotent statements.
    """


@asynccontextmanager
async def connect(url: str, *, statement_timeout: float | None) -> AsyncIterator[Any]:
    """Open a connection (`asyncpg.Connection`) outside the pool.

    `statement_timeout` is in seconds; None is unlimited.

    Raises:
        StoreConnectionLostError: the connection cannot be opened, or was lost.
    """
    try:
        connection = await asyncpg.connect(
            url, timeout=CONNECT_TIMEOUT, command_timeout=statement_timeout
        )
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
    """Return a description of a database error and what to do; never with a secret."""
    match error:
        case asyncpg.DiskFullError():
            return f"the disk of the database is full; free space on its server ({error})"
        case asyncpg.TooManyConnectionsError():
            return f"{error}; raise max_connections, or run fewer workers"
        case asyncpg.ReadOnlySQLTransactionError():
            return f"{error}; this server is read-only, so configure the primary one"
        case asyncpg.QueryCanceledError() | TimeoutError():
            return "timeout"
        case _:
            return str(error) or type(error).__name__


def rejected_by_server(error: BaseException) -> bool:
    """Return whether the server reported that the statement failed, so it had no effect."""
    return isinstance(error, asyncpg.PostgresError) and error.severity_en == "ERROR"


def without_password(url: str) -> str:
    """Return the URL without its password and its query, which can contain a password."""
    return re.sub(r"//([^:/@]*):.*@", r"//\1:******@", url.partition("?")[0])
