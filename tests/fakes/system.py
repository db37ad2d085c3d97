"""Scheduler, callback sender and gateway, each a process, over one broker and database."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from tests.fakes.gateway import TICKET_KEY, Caller, base_url, calling, gateway
from tests.fakes.service import Service, running

# 32 bytes, as everybody may know.
SECRETS_KEY = "cmluZ2JhY2stcmluZ2JhY2stcmluZ2JhY2stcmluZ2I="


@dataclass(frozen=True)
class System:
    """The running services."""

    scheduler: Service
    callback: Service
    gateway: Service

    async def ready(self) -> "System":
        """Wait until all are."""
        for service in (self.scheduler, self.callback, self.gateway):
            await service.ready()
        return self

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[Caller]:
        """An anonymous caller of its gateway."""
        async with calling(await base_url(self.gateway)) as call:
            yield call


@contextmanager
def system(directory: Path, amqp_url: str, database_url: str, **settings: str) -> Iterator[System]:
    """Run all for the length of the block, on a database that is brought up to date first."""
    given = {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_TICKET_KEY": TICKET_KEY,
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
    } | settings
    subprocess.run(
        (sys.executable, "-m", "services", "migrate"),
        env={"PATH": os.environ["PATH"], **given},
        cwd=directory,
        check=True,
    )
    with ExitStack() as stack:

        def run(name: str) -> Service:
            arguments = ("-m", "services", "run", name, "--metrics-port", "0")
            return stack.enter_context(running(directory, amqp_url, given, arguments))

        scheduler, callback = run("scheduler"), run("callback")
        yield System(scheduler, callback, stack.enter_context(gateway(directory, amqp_url, given)))


@contextmanager
def fresh_database(database_url: str) -> Iterator[str]:
    """A database of one's own on the same server: a scheduler fires all that lies in its own."""
    name = f"fresh_{uuid4().hex[:12]}"
    asyncio.run(_execute(database_url, f'CREATE DATABASE "{name}"'))
    try:
        yield urlsplit(database_url)._replace(path=f"/{name}").geturl()
    finally:
        asyncio.run(_execute(database_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
