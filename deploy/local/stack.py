"""The broker and the database of `ringback up`.

    with start() as stack:
        ...  # stack.amqp_url, stack.database_url

Configured servers (`RINGBACK_AMQP_URL`, `RINGBACK_DATABASE_URL`) are used as they are. The others
are private: they start here and stop at the end. Their data stays for the next start.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.local.broker import Broker
from deploy.local.daemon import LOCAL_DIRECTORY, FileLock, LocalStackError
from deploy.local.database import Database

DIRECTORY = LOCAL_DIRECTORY / "stack"


@dataclass(frozen=True)
class Stack:
    """The URLs of the broker and the database, and the private servers."""

    amqp_url: str
    database_url: str
    broker: Broker | None = None
    database: Database | None = None

    @property
    def management_url(self) -> str | None:
        """Return the management page of the private broker (user and password `guest`), or None."""
        return self.broker.management_url if self.broker else None

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables for a process that uses this stack."""
        return {"RINGBACK_AMQP_URL": self.amqp_url, "RINGBACK_DATABASE_URL": self.database_url}

    def stop(self) -> None:
        """Stop the private servers in parallel."""
        with ThreadPoolExecutor() as pool:
            stops = [pool.submit(server.stop) for server in (self.broker, self.database) if server]
        for stop in stops:
            stop.result()


@contextmanager
def start(
    directory: Path = DIRECTORY, environment: Mapping[str, str] = os.environ
) -> Iterator[Stack]:
    """Start the servers that `environment` does not name, and stop them at the end.

    Servers that still run, because the process before was killed, are used.

    Raises:
        LocalStackError: another process uses this stack, or a server does not start.
    """
    with reserve(directory):
        stack = start_servers(directory, environment)
        try:
            yield stack
        finally:
            stack.stop()


def start_servers(
    directory: Path = DIRECTORY, environment: Mapping[str, str] = os.environ
) -> Stack:
    """Like `start`, but the servers run until `stop` is called by any process."""
    amqp_url = environment.get("RINGBACK_AMQP_URL")
    database_url = environment.get("RINGBACK_DATABASE_URL")
    broker = None if amqp_url else Broker(directory / "broker")
    database = None if database_url else Database(directory / "database")
    stack = Stack(amqp_url or "", database_url or "", broker, database)
    try:
        with ThreadPoolExecutor() as pool:
            starts = [pool.submit(server.start) for server in (broker, database) if server]
        for started in starts:
            started.result()
    except BaseException:
        stack.stop()
        raise
    return Stack(
        broker.url if broker else stack.amqp_url,
        database.url if database else stack.database_url,
        broker,
        database,
    )


def save_gateway_url(url: str, directory: Path = DIRECTORY) -> None:
    """Save the URL of the gateway of this `ringback up`, for commands in other terminals."""
    (directory / "gateway").write_text(url)


def gateway_url(directory: Path = DIRECTORY) -> str | None:
    """Return the URL of the gateway of the `ringback up` that runs in `directory`, or None."""
    with suppress(FileNotFoundError):
        if FileLock(directory / "in-use").holder() is not None:
            return (directory / "gateway").read_text()
    return None


@contextmanager
def reserve(directory: Path = DIRECTORY) -> Iterator[None]:
    """Prevent other processes from starting or stopping the stack in `directory`.

    Raises:
        LocalStackError: another process uses it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / "in-use")
    if lock.acquire() is None:
        raise LocalStackError(
            f"Cannot start: Ringback already runs in {directory.parent}, as process"
            f" {lock.holder()}. Stop it first (Ctrl-C in its terminal), or use its servers:"
            " `python -m deploy.local status`."
        )
    try:
        (directory / "gateway").unlink(missing_ok=True)  # of an earlier run
        lock.write(os.getpid())
        yield
    finally:
        lock.release()
