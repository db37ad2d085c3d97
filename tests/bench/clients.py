"""Part r: lines per second, CPU and memory of an import of 200,000 clients."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Final

import aiohttp

from deploy.local.daemon import free_port
from services.mailings.app import SCHEMA
from shared.postgres.migrations import migrate
from tests.bench.rig import Rig, Sender, StalledError
from tests.bench.table import Row, Section, at_least, at_most
from tests.bench.timing import TIMEOUT

MANY: Final = 200_000
FEW: Final = 2_000
# Lines that are sent at a time.
BLOCK: Final = 1_000
HEADER: Final = "phone,timezone,tag\n"


async def clients(rig: Rig) -> Section:
    """Part r."""
    name = "clients"
    url = rig.broker.add_vhost(name)
    database_url = rig.database.create_database(name)
    await migrate(database_url, SCHEMA)
    environment = {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_HTTP_PORT": str(free_port()),
        "RINGBACK_LOG_LEVEL": "WARNING",
    }
    processes = [
        rig.start(("-m", f"services.{service}"), url, f"{name}_{service}", environment)
        for service in ("gateway", "mailings")
    ]
    try:
        base = f"http://127.0.0.1:{environment['RINGBACK_HTTP_PORT']}"
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(base, timeout=timeout) as session:
            await _ready(session, processes)
            await _import(session, "created", FEW)
            before = [process.resident() for process in processes]
            cpu = [process.cpu() for process in processes]
            rate = await _import(session, "created", MANY, first=FEW)
            used = [process.cpu() - start for process, start in zip(processes, cpu, strict=True)]
            grown = [
                process.resident() - start for process, start in zip(processes, before, strict=True)
            ]
            again = await _import(session, "updated", MANY, first=FEW)
    finally:
        for process in processes:
            process.signal(signal.SIGKILL)
            process.process.wait()
        rig.broker.delete_vhost(name)
    rows = [
        Row("new clients", "/s", rate, target="at least 20,000", verdict=at_least(rate, 20_000)),
        Row("the same clients again", "/s", again),
        Row("CPU of the gateway per line", "µs", used[0] / MANY * 1e6),
        Row("CPU of mailings per line", "µs", used[1] / MANY * 1e6),
        Row(
            "more memory than after 2,000 lines",
            "MB",
            max(grown),
            target="at most 10",
            verdict=at_most(max(grown), 10),
        ),
    ]
    notes = [f"{MANY:,} lines of CSV in one request; sender, broker and database share the cores"]
    return Section("r", "Import of clients", "", rows, notes)


async def _ready(session: aiohttp.ClientSession, processes: list[Sender]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        for process in processes:
            process.check()
        try:
            async with session.get("/v1/clients") as response:
                if response.ok:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.05)
    raise StalledError("the gateway was not ready in time")


async def _import(session: aiohttp.ClientSession, result: str, count: int, first: int = 0) -> float:
    """Import this many clients; return the lines per second."""
    begin = time.monotonic()
    headers = {"Content-Type": "text/csv"}
    async with session.post(
        "/v1/clients/import", data=_lines(first, count), headers=headers
    ) as response:
        report = await response.json(content_type=None)
    if report.get(result) != count:
        raise StalledError(f"the import responded with {response.status}: {report}")
    return count / (time.monotonic() - begin)


async def _lines(first: int, count: int) -> AsyncIterator[bytes]:
    yield HEADER.encode()
    for start in range(first, first + count, BLOCK):
        yield "".join(
            f"7{9_000_000_000 + number * 4999 % 1_000_000_000},Europe/Moscow,tag {number % 20}\n"
            for number in range(start, start + BLOCK)
        ).encode()
