"""The primary of PostgreSQL killed under load, and its standby promoted: nothing is lost."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.fakes.replication import Pair, replicated
from tests.fakes.service import running
from tests.fakes.system import SECRETS_KEY
from tests.fakes.traffic import flowing_traffic, traffic
from tests.fakes.waiting import until

SERVICES = ("callback", "scheduler", "ingestion", "mailings", "delivery")
KINDS = {"schedule", "event", "posting"}


@pytest.fixture
def pair(stack_directory: Path) -> Iterator[Pair]:
    with replicated(stack_directory / "failover") as servers:
        yield servers


# Row 19
@pytest.mark.slow
async def test_n11_and_row_19_a_killed_primary_loses_nothing_and_work_resumes_on_the_standby(
    amqp_url: str, pair: Pair, tmp_path: Path
) -> None:
    await until(pair.in_sync)
    settings = {
        "RINGBACK_DATABASE_URL": f"{pair.url}?target_session_attrs=read-write",
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
    }
    migrate = (sys.executable, "-m", "services", "migrate")
    environment = {"PATH": os.environ["PATH"], **settings}
    await asyncio.to_thread(subprocess.run, migrate, env=environment, cwd=tmp_path, check=True)
    async with AsyncExitStack() as stack:
        load = await stack.enter_async_context(traffic(amqp_url))
        settings |= load.settings
        services = []
        for name in SERVICES:
            run = ("-m", "services", "run", name, "--metrics-port", "0")
            services.append(stack.enter_context(running(tmp_path, amqp_url, settings, run)))
        for service in services:
            await service.ready()
        async with flowing_traffic(load):
            await until(lambda: len(load.arrived) > 150)
            await asyncio.to_thread(pair.kill_primary)
            await until(lambda: all(each.logged("database is not ready") for each in services[1:]))
            await asyncio.to_thread(pair.promote)
            promoted_at = time.monotonic()
            await until(lambda: load.kinds_since(promoted_at) == KINDS)
            resumed = time.monotonic() - promoted_at

            await asyncio.to_thread(pair.return_as_standby)
            returned_at = time.monotonic()
            await until(lambda: load.kinds_since(returned_at) == KINDS)
        await load.complete(within=60)
        repeats = len(load.arrived) - len(load.accepted)
        print(f"resumed after {resumed:.1f} s; {len(load.accepted)} items, {repeats} repeats")  # noqa: T201 - figures to read
        password = str(urlsplit(pair.primary.url).password)
        for service in services:
            assert not service.exited()
            assert password not in service.output
            assert not service.logged("bug")
