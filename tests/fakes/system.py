"""A gateway and the services behind it, each a process, over one broker and database."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from shared.postgres.migrations import Schema, migrate
from shared.registry import SERVICES
from tests.fakes.gateway import TICKET_KEY, Caller, base_url, calling, gateway
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

# 32 bytes, public.
SECRETS_KEY = "cmluZ2JhY2stcmluZ2JhY2stcmluZ2JhY2stcmluZ2I="


class System(dict[str, Service]):
    """The running services by name."""

    async def ready(self) -> "System":
        """Wait until all are ready. A gateway without a scheduler is ready with its broker."""
        for name, service in self.items():
            if name == "gateway" and "scheduler" not in self:
                await until(lambda: self["gateway"].logged("broker is ready"))
            else:
                await service.ready()
        return self

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[Caller]:
        """Yield an anonymous client of its gateway."""
        async with calling(await base_url(self["gateway"])) as call:
            yield call


def migrate_all(database_url: str) -> None:
    """Apply the migrations of every service.

    In a thread, because the caller may run in an event loop. A process would cost more CPU.
    """

    async def apply() -> None:
        for spec in SERVICES.values():
            if spec.schema:
                await migrate(database_url, Schema.of(spec.module))

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, apply()).result()


@contextmanager
def system(
    directory: Path,
    amqp_url: str | Mapping[str, str],
    database_url: str,
    *names: str,
    **settings: str,
) -> Iterator[System]:
    """Migrate the database, and run a gateway and these services.

    amqp_url: the URL of the broker, or that of each service by name.
    """

    def url_of(name: str) -> str:
        return amqp_url if isinstance(amqp_url, str) else amqp_url[name]

    given = {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_TICKET_KEY": TICKET_KEY,
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
    } | settings
    migrate_all(given["RINGBACK_DATABASE_URL"])
    with ExitStack() as stack:
        services = System()
        for name in names:
            arguments = ("-m", "services", "run", name, "--metrics-port", "0")
            service = running(directory, url_of(name), given, arguments)
            services[name] = stack.enter_context(service)
        services["gateway"] = stack.enter_context(gateway(directory, url_of("gateway"), given))
        yield services


# Starts a gateway and the named services with settings, on a database of their own.
StartSystem = Callable[..., AbstractContextManager[System]]


@contextmanager
def fresh_database(database_url: str) -> Iterator[str]:
    """Yield a new database on the same server, because a scheduler dispatches all its rows."""
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
