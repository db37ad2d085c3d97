"""The broker and the database of one checkout, as `ringback up` uses them.

    with start() as stack:
        ...  # stack.amqp_url, stack.database_url

What is configured (`RINGBACK_AMQP_URL`, `RINGBACK_DATABASE_URL`) is used as it is; what is not is
started here and stopped at the end. Data stays for the next start, which is quicker.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.broker import Broker
from deploy.local.daemon import CHECKOUT, FileLock, LocalStackError
from deploy.local.database import Database

DIRECTORY = CHECKOUT / ".ringback" / "stack"


@dataclass(frozen=True)
class Stack:
    """What the services connect to, and the private servers behind it, if they are private."""

    amqp_url: str
    database_url: str
    broker: Broker | None = None
    database: Database | None = None

    @property
    def management_url(self) -> str | None:
        """The page of RabbitMQ's management plugin (user and password `guest`), if ours."""
        return self.broker.management_url if self.broker else None

    @property
    def environment(self) -> dict[str, str]:
        """What to set for a process that shall use this stack."""
        return {"RINGBACK_AMQP_URL": self.amqp_url, "RINGBACK_DATABASE_URL": self.database_url}

    def stop(self) -> None:
        """Stop the private servers, both at once."""
        with ThreadPoolExecutor() as pool:
            stops = [pool.submit(server.stop) for server in (self.broker, self.database) if server]
        for stop in stops:
            stop.result()


@contextmanager
def start(
    directory: Path = DIRECTORY, environment: Mapping[str, str] = os.environ
) -> Iterator[Stack]:
    """Start what `environment` does not name, and stop it at the end.

    Servers that an earlier stack left running, because it was killed, are taken over.

    Raises:
        LocalStackError: another process has this stack in use, or a server does not start.
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
    """As `start`, but what it starts runs on until its `stop` is called, here or elsewhere."""
    amqp_url = environment.get("RINGBACK_AMQP_URL")
    database_url = environment.get("RINGBACK_DATABASE_URL")
    broker = None if amqp_url else Broker(directory / "broker")
    database = None if database_url else Database(directory / "database")
    stack = Stack(amqp_url or "", database_url or "", broker, database)
    try:
        with ThreadPoolExecutor() as pool:
            starts = [pool.submit(server.start) for server in (broker, database) if server]
        for begun in starts:
            begun.result()
    except BaseException:
        stack.stop()
        raise
    return Stack(
        broker.url if broker else stack.amqp_url,
        database.url if database else stack.database_url,
        broker,
        database,
    )


@contextmanager
def reserve(directory: Path = DIRECTORY) -> Iterator[None]:
    """Keep others from starting or stopping the stack in `directory` meanwhile.

    Raises:
        LocalStackError: another process has it in use.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / "in-use")
    if lock.acquire() is None:
        raise LocalStackError(
            f"Ringback already runs in this checkout, as process {lock.holder()}. End that one"
            " first (Ctrl-C in its terminal), or use its servers, which `python -m deploy.local"
            " status` shows."
        )
    try:
        lock.write(os.getpid())
        yield
    finally:
        lock.release()
