"""Connections to PostgreSQL, and the errors that mean that the database is unavailable."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg

from shared.errors import InfrastructureError
from shared.postgres.url import urls_of_hosts, without_password

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
        connection = await connect_to_primary(
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


async def connect_to_primary(url: str, **options: Any) -> Any:
    """Open a connection (`asyncpg.Connection`) to the host of `url` that accepts writes.

    All hosts are tried at the same time, so one that does not respond delays nobody.

    Raises:
        CONNECT_ERRORS: no host accepts writes.
    """
    options |= {"target_session_attrs": "read-write"}
    urls = urls_of_hosts(url)
    if len(urls) == 1:
        return await asyncpg.connect(url, **options)
    attempts = [asyncio.create_task(asyncpg.connect(each, **options)) for each in urls]
    chosen = None
    try:
        for attempt in asyncio.as_completed(attempts):
            with suppress(*CONNECT_ERRORS):
                chosen = await attempt
                return chosen
    finally:
        for each in attempts:
            each.cancel()
        for opened in await asyncio.gather(*attempts, return_exceptions=True):
            if opened is not chosen and not isinstance(opened, BaseException):
                opened.terminate()
    causes = [describe_error(error) for each in attempts if (error := each.exception())]
    raise ConnectionError("; ".join(causes))


def describe_error(error: BaseException) -> str:
    """Return a description of a database error and what to do; never with a secret."""
    match error:
        case asyncpg.DiskFullError():
            return f"the disk of the database is full; free space on its server ({error})"
        case asyncpg.TooManyConnectionsError():
            return f"{error}; raise max_connections, or run fewer workers"
        case asyncpg.ReadOnlySQLTransactionError() | asyncpg.TargetServerAttributeNotMatched():
            return "the server is read-only; configure the primary one, or all hosts"
        case asyncpg.LockNotAvailableError():
            return "another transaction holds a lock for too long; end it, see pg_locks"
        case asyncpg.QueryCanceledError() | TimeoutError():
            return "timeout"
        case _:
            return str(error) or type(error).__name__


def rejected_by_server(error: BaseException) -> bool:
    """Return whether the server reported that the statement failed, so it had no effect."""
    return isinstance(error, asyncpg.PostgresError) and error.severity_en == "ERROR"
