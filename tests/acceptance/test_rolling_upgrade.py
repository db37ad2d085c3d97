"""This version and the next one side by side, under traffic: nothing is lost or dead-lettered."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.fakes.gateway import TICKET_KEY, base_url, calling
from tests.fakes.next_version import FIELD, next_version
from tests.fakes.service import Service, running
from tests.fakes.system import SECRETS_KEY, fresh_database
from tests.fakes.traffic import Traffic, flowing_traffic, traffic
from tests.fakes.waiting import until

CONSUMERS_FIRST = ("delivery", "callback", "mailings", "scheduler", "ingestion", "gateway")
KINDS = {"schedule", "event", "posting", "request", "report"}


class Upgrade:
    """Services of two versions, one of each name and version at most."""

    def __init__(
        self, stack: AsyncExitStack, directory: Path, amqp_url: str, settings: dict[str, str]
    ) -> None:
        self._stack = stack
        self._directory = directory
        self._amqp_url = amqp_url
        self._settings = settings
        self.next = str(next_version(directory / "next"))

    def start(self, name: str, version: str = "") -> Service:
        """Start a service of this version, or of the one in a directory."""
        settings = self._settings | ({"PYTHONPATH": version} if version else {})
        run = ("-m", "services", "run", name, "--metrics-port", "0")
        return self._stack.enter_context(running(self._directory, self._amqp_url, settings, run))

    async def migrate(self, version: str = "") -> str:
        """Run `ringback migrate` of a version, and return its output."""
        environment = {"PATH": os.environ["PATH"], **self._settings, "PYTHONPATH": version}
        done = await asyncio.to_thread(
            subprocess.run,
            (sys.executable, "-m", "services", "migrate"),
            env=environment,
            cwd=self._directory,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    async def use_gateway(self, load: Traffic, gateway: Service) -> None:
        """Send the requests of the traffic to this gateway."""
        load.gateway = await self._stack.enter_async_context(calling(await base_url(gateway)))


async def terminate_connections(url: str) -> None:
    """Close all other connections to the database."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()


async def _all_kinds_arrive(load: Traffic) -> None:
    since = time.monotonic()
    await until(lambda: load.kinds_since(since) == KINDS)


@pytest.fixture
def own_url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as url:
        yield url


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(CONSUMERS_FIRST, id="consumers-first", marks=pytest.mark.slow),
        pytest.param(CONSUMERS_FIRST[::-1], id="producers-first", marks=pytest.mark.slow),
    ],
)
async def test_n12_two_versions_side_by_side_lose_and_dead_letter_nothing(
    amqp_url: str, own_url: str, tmp_path: Path, order: tuple[str, ...]
) -> None:
    async with AsyncExitStack() as stack:
        load = await stack.enter_async_context(traffic(amqp_url))
        settings = {
            "RINGBACK_DATABASE_URL": own_url,
            "RINGBACK_SECRETS_KEY": SECRETS_KEY,
            "RINGBACK_TICKET_KEY": TICKET_KEY,
            "RINGBACK_HTTP_PORT": "0",
            **load.settings,
        }
        upgrade = Upgrade(stack, tmp_path, amqp_url, settings)
        await upgrade.migrate()
        old = {name: upgrade.start(name) for name in order}
        for service in old.values():
            await service.ready()
        await upgrade.use_gateway(load, old["gateway"])
        async with flowing_traffic(load):
            await _all_kinds_arrive(load)
            assert f"_{FIELD}" in await upgrade.migrate(upgrade.next)
            await terminate_connections(own_url)  # so the old version connects to the new schema
            await _all_kinds_arrive(load)
            load.refused = 0  # a request may have failed on a closed connection
            for name in order:
                newer = await upgrade.start(name, upgrade.next).ready()
                if name == "gateway":
                    await upgrade.use_gateway(load, newer)
                await _all_kinds_arrive(load)
                old[name].signal(signal.SIGTERM)
                assert await old[name].exit_code() == 0, old[name].output
        await load.complete(within=60)
    assert load.refused == 0
    assert not any(service.logged("bug") for service in old.values())
    print(f"{len(load.accepted)} items, {len(load.arrived) - len(load.accepted)} repeats")  # noqa: T201 - figures to read
    ignored = [len(service.logged("facts of an unknown type ignored")) for service in old.values()]
    assert max(ignored) == (1 if order == CONSUMERS_FIRST else 0)
