"""Part y: what fifty browsers that follow the overview of the console cost delivery."""

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
import asyncpg

from services.console.app import SCHEMA as CONSOLE
from services.console.security import SESSION_COOKIE
from services.console.sign_in.roles import Role
from services.console.sign_in.sessions import Sessions, User
from services.journal.app import SCHEMA as JOURNAL
from services.journal.partitions import Partitions
from services.scheduler.app import SCHEMA as SCHEDULER
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.postgres.migrations import migrate
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.topology import topology
from tests.bench.journal import MAX_COST
from tests.bench.journal_pages import FILL_MINUTES
from tests.bench.polling import free_port
from tests.bench.rig import Contender, Rig, Sender, Site, StalledError, cpu_of, median, rounds, tree
from tests.bench.sending import paced
from tests.bench.sink import Group
from tests.bench.table import Row, Section, at_most

BROWSERS: Final = 50
# Callbacks a second, far below the limit of the cores, and seconds of one measurement.
RATE: Final = 500.0
SECONDS: Final = 8.0
ROUNDS: Final = 4
ROUND_SECONDS: Final = 100.0
# Minutes of figures about 200 targets in the journal.
MINUTES: Final = 180
TIMEOUT: Final = 60.0
# Seconds until the console has noticed that browsers have gone: at the next update.
GONE: Final = 6.0
# Bytes of one update of the page.
_MAX_EVENT: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Round:
    """Callbacks at a constant rate.

    callback: µs of CPU per callback. p50, p99: seconds from publish to arrival.
    cpu: ms of CPU a second, by process. updates: updates a second of each browser.
    """

    callback: float
    p50: float
    p99: float
    cpu: dict[str, float]
    updates: float


@dataclass(slots=True)
class Stand:
    """The running processes, and what browsers need."""

    rig: Rig
    site: Site
    processes: dict[str, Sender]
    origin: str
    cookies: Sequence[str]

    async def measure(self, browsers: int) -> Round:
        """Deliver callbacks while this many browsers follow the overview."""
        async with _following(self.origin, self.cookies[:browsers]) as received:
            responses = self.site.counters.responses[Group.HEALTHY]
            before, updates, begin = self._cpu(), sum(received), time.monotonic()
            result = await paced(self.site, (Group.HEALTHY,), RATE, SECONDS)
            seconds = time.monotonic() - begin
            used = {name: value - before[name] for name, value in self._cpu().items()}
            updates = sum(received) - updates
        for process in self.processes.values():
            process.check()
        count = self.site.counters.responses[Group.HEALTHY] - responses
        return Round(
            callback=used.pop("callback") / count * 1e6,
            p50=result.p50,
            p99=result.p99,
            cpu={name: each / seconds * 1e3 for name, each in used.items()},
            updates=updates / seconds / max(browsers, 1),
        )

    def _cpu(self) -> dict[str, float]:
        return {
            "callback": self.site.sender.cpu(),
            **{name: process.cpu() for name, process in self.processes.items()},
            "PostgreSQL": cpu_of(tree(self.rig.database.pid or 0)),
        }


async def browsers(rig: Rig) -> Section:
    """Part y."""
    database_url = rig.database.create_database("browsers")
    for schema in (SCHEDULER, JOURNAL, CONSOLE):
        await migrate(database_url, schema)
    cookies = await _prepare(database_url)
    port = free_port()
    environment = {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_SECRETS_KEY": base64.b64encode(os.urandom(32)).decode(),
        "RINGBACK_OIDC_ISSUER": "http://127.0.0.1:1/oidc",  # the sessions exist already
        "RINGBACK_CONSOLE_PORT": str(port),
    }
    following: list[Round] = []
    alone: list[Round] = []
    async with rig.site(Contender.OURS, environment=environment) as site:
        async with connect(site.url, name="bench") as broker:
            await declare(broker.connection, topology())
        names = ("scheduler", "journal", "console")
        with rig.services(names, site.url, environment) as processes:
            stand = Stand(rig, site, processes, f"http://127.0.0.1:{port}", cookies)
            await _until_open(stand)
            for _ in rounds(ROUNDS, ROUND_SECONDS, minimum=2):
                alone.append(await stand.measure(0))
                following.append(await stand.measure(BROWSERS))
    notes = [
        f"{len(alone)} rounds of {SECONDS:.0f} s, {RATE:.0f} callbacks a second, in turn; medians",
        f"{BROWSERS} browsers, each with a session; figures of 200 targets in three hours",
        "one process of each service; all of them share the cores with broker and receiver",
    ]
    rows = list(_rows(following, alone))
    return Section("y", f"Console: {BROWSERS} browsers on the overview", "without", rows, notes)


def _rows(following: Sequence[Round], alone: Sequence[Round]) -> Iterator[Row]:
    pairs = list(zip(following, alone, strict=True))
    cpu = median([a.callback / b.callback for a, b in pairs])
    yield Row(
        "CPU for a callback",
        "µs",
        median([each.callback for each in following]),
        median([each.callback for each in alone]),
        cpu,
        f"at most {MAX_COST}",
        at_most(cpu, MAX_COST),
    )
    for quantile, name in (("median", "p50"), ("99 %", "p99")):
        yield Row(
            f"publish to arrival, {quantile}",
            "ms",
            median([getattr(each, name) for each in following]) * 1e3,
            median([getattr(each, name) for each in alone]) * 1e3,
            median([getattr(a, name) / getattr(b, name) for a, b in pairs]),
        )
    for name in alone[0].cpu:
        yield Row(
            f"CPU of {name}",
            "ms/s",
            median([each.cpu[name] for each in following]),
            median([each.cpu[name] for each in alone]),
        )
    yield Row("updates of each browser", "/s", median([each.updates for each in following]))


async def _prepare(database_url: str) -> list[str]:
    """Fill the figures of targets, sign users in, and return their cookies."""
    database = Database(database_url, name="bench", health=Health(), schema=CONSOLE)
    running = asyncio.create_task(database.run())
    try:
        await database.ready()
        await Partitions(database).create_ahead()
        sessions = Sessions(database, idle=3600.0, lifetime=3600.0)
        users = [User("bench", f"user-{n}", f"user-{n}", f"User {n}") for n in range(BROWSERS)]
        cookies = [await sessions.start(user, Role.VIEWER) for user in users]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    connection = await asyncpg.connect(database_url)
    await connection.execute(FILL_MINUTES, MINUTES)
    await connection.execute("VACUUM (ANALYZE) journal.minutes")
    await connection.close()
    return cookies


async def _until_open(stand: Stand) -> None:
    """Wait until the console shows the figures of the journal."""
    deadline = time.monotonic() + TIMEOUT
    async with aiohttp.ClientSession() as http:
        while time.monotonic() < deadline:
            for process in stand.processes.values():
                process.check()
            try:
                page = await _open(http, stand.origin, stand.cookies[0])
            except aiohttp.ClientError:
                page = ""
            if 'data-live="' in page:
                return
            await asyncio.sleep(0.2)
    raise StalledError(f"the console did not show the overview in {TIMEOUT:.0f} s")


async def _open(http: aiohttp.ClientSession, origin: str, cookie: str) -> str:
    headers = {"Cookie": f"{SESSION_COOKIE}={cookie}"}
    async with http.get(f"{origin}/", headers=headers, allow_redirects=False) as response:
        response.raise_for_status()
        return await response.text()


@asynccontextmanager
async def _following(origin: str, cookies: Sequence[str]) -> AsyncIterator[list[int]]:
    """Open the overview in a browser for each cookie. Yield how many updates each has received."""
    received = [0] * len(cookies)
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, read_bufsize=_MAX_EVENT
    ) as http:
        tasks = [
            asyncio.create_task(_follow(http, origin, cookie, received, number))
            for number, cookie in enumerate(cookies)
        ]
        try:
            deadline = time.monotonic() + TIMEOUT
            while not all(received):
                if time.monotonic() > deadline:
                    raise StalledError(f"no update of the overview in {TIMEOUT:.0f} s")
                await asyncio.sleep(0.1)
            yield received
            if ended := [task for task in tasks if task.done()]:
                raise StalledError(f"{len(ended)} streams of the overview ended: {ended[0]}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if cookies:
        await asyncio.sleep(GONE)


async def _follow(
    http: aiohttp.ClientSession, origin: str, cookie: str, received: list[int], number: int
) -> None:
    """Open the page like a browser, and count the updates of its stream."""
    await _open(http, origin, cookie)
    headers = {"Cookie": f"{SESSION_COOKIE}={cookie}"}
    async with http.get(f"{origin}/live/overview", headers=headers) as stream:
        stream.raise_for_status()
        while event := await stream.content.readuntil(b"\n\n"):
            received[number] += event.startswith(b"data:")
