"""Parts w and x: how fast the journal stores attempts, and what it costs delivery."""

import asyncio
import base64
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from services.journal.app import SCHEMA
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.amqp.facts import fact_messages
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.contracts.facts import CallbackAttemptFailed, CallbackDelivered
from shared.postgres.migrations import migrate
from shared.topology import JOURNAL_FACTS, topology
from tests.bench import journal_by_hand
from tests.bench.rig import (
    POLL,
    Contender,
    Rig,
    Sender,
    Site,
    StalledError,
    bind_facts,
    cpu_of,
    median,
    rounds,
    running_publisher,
    tree,
)
from tests.bench.sending import BURST, Burst, burst
from tests.bench.sink import Group
from tests.bench.table import Row, Section, at_least, at_most

# Attempts of one measurement, and of one message. Callback processes send as many under load.
COUNT: Final = 100_000
FACTS: Final = 100
# Messages that wait for a confirm at a time.
BATCH: Final = 50
# One of this many attempts fails.
FAILED: Final = 20
TARGETS: Final = 20
CLIENTS: Final = 5
ROUNDS: Final = 3
TIMEOUT: Final = 120.0
# Rounds of bursts, and seconds after which no further one starts on a busy machine.
BURST_ROUNDS: Final = 7
SECONDS: Final = 100.0
MAX_COST: Final = 1.05


@dataclass(frozen=True, slots=True)
class Stored:
    """The cost of storing attempts.

    rate: attempts per second. cpu, postgres: µs of the process and of PostgreSQL per attempt.
    """

    rate: float
    cpu: float
    postgres: float


@dataclass(slots=True)
class Recorder:
    """A program that stores attempts, and the feed of its queue.

    last: the query for the number of the last stored attempt. fed: published attempts.
    """

    process: Sender
    publisher: Publisher
    database: asyncpg.Connection
    last: str
    fed: int = 0

    async def store(self, rig: Rig, count: int) -> Stored:
        """Queue attempts while the program is stopped, and measure until all are stored."""
        self.process.signal(signal.SIGSTOP)
        messages = _messages(count)
        while batch := list(itertools.islice(messages, BATCH)):
            await self.publisher.publish_all(batch)
        self.fed += count
        cpu, postgres = self.process.cpu(), _postgres(rig)
        begin = time.monotonic()
        self.process.signal(signal.SIGCONT)
        while (await self.database.fetchval(self.last) or 0) < self.fed:
            self.process.check()
            if time.monotonic() - begin > TIMEOUT:
                raise StalledError(f"{count:,} attempts were not stored in {TIMEOUT:.0f} s")
            await asyncio.sleep(POLL)
        return Stored(
            count / (time.monotonic() - begin),
            (self.process.cpu() - cpu) / count * 1e6,
            (_postgres(rig) - postgres) / count * 1e6,
        )


async def recording(rig: Rig) -> Section:
    """Part w."""
    ours: list[Stored] = []
    theirs: list[Stored] = []
    async with _journal(rig) as journal, _by_hand(rig) as by_hand:
        for recorder in (journal, by_hand):
            await recorder.store(rig, COUNT // 20)  # the first batch opens the connections
        for _ in range(ROUNDS):
            ours.append(await journal.store(rig, COUNT))
            theirs.append(await by_hand.store(rig, COUNT))
    rate = median([each.rate for each in ours])
    rows = [
        Row(
            "attempts",
            "/s",
            rate,
            median([each.rate for each in theirs]),
            median([a.rate / b.rate for a, b in zip(ours, theirs, strict=True)]),
            "at least 10,000",
            at_least(rate, 10_000),
        ),
        *(
            Row(
                f"CPU of {whose} for an attempt",
                "µs",
                median([getattr(each, name) for each in ours]),
                median([getattr(each, name) for each in theirs]),
                median(
                    [getattr(a, name) / getattr(b, name) for a, b in zip(ours, theirs, strict=True)]
                ),
            )
            for whose, name in (("the process", "cpu"), ("PostgreSQL", "postgres"))
        ),
    ]
    notes = [
        f"{ROUNDS} rounds of {COUNT:,} attempts in messages of {FACTS}, in turn; medians",
        f"one of {FAILED} failed; {TARGETS * CLIENTS} pairs of target and client",
        "broker and database share the cores",
        "hand-written: json.loads and one COPY into a table with two indexes besides its key",
    ]
    return Section("w", "Journal: attempts stored by one process", "hand-written", rows, notes)


@asynccontextmanager
async def _journal(rig: Rig) -> AsyncIterator[Recorder]:
    url = rig.broker.add_vhost("recording")
    database_url = rig.database.create_database("recording")
    await migrate(database_url, SCHEMA)
    last = "SELECT max(seq) FROM journal.entries"
    async with (
        _connected(database_url) as database,
        running_publisher(url, topology()) as publisher,
    ):
        with rig.services(("journal",), url, {"RINGBACK_DATABASE_URL": database_url}) as started:
            yield Recorder(started["journal"], publisher, database, last)


@asynccontextmanager
async def _by_hand(rig: Rig) -> AsyncIterator[Recorder]:
    name = "recording_by_hand"
    url, database_url = rig.broker.add_vhost(name), rig.database.create_database(name)
    async with (
        _connected(database_url) as database,
        connect(url, name="bench") as broker,
        running_publisher(url, topology().only(())) as publisher,
    ):
        await database.execute(journal_by_hand.TABLE)
        await bind_facts(broker)
        process = rig.start(
            ("-m", "tests.bench.journal_by_hand"),
            url,
            name,
            {"RINGBACK_DATABASE_URL": database_url},
        )
        try:
            yield Recorder(process, publisher, database, "SELECT max(id) FROM attempts")
        finally:
            process.signal(signal.SIGKILL)
            process.process.wait()


@asynccontextmanager
async def _connected(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


def _postgres(rig: Rig) -> float:
    return cpu_of(tree(rig.database.pid or 0))


def _messages(count: int) -> Iterator[OutgoingMessage]:
    """Yield messages with this many attempts in all. A message has facts of one type."""
    for start in range(0, count, FACTS):
        is_failed = start // FACTS % FAILED == FAILED - 1
        yield from fact_messages(
            _attempt(n, is_failed=is_failed) for n in range(start, start + FACTS)
        )


def _attempt(number: int, *, is_failed: bool) -> CallbackDelivered | CallbackAttemptFailed:
    now = datetime.now(UTC)
    callback_id = new_id()
    fields: dict[str, Any] = {
        "fact_id": f"{callback_id}/1",
        "at": now,
        "callback_id": callback_id,
        "client_id": f"client-{number % CLIENTS}",
        "target": f"https://target-{number // CLIENTS % TARGETS}.example:443",
        "attempt": 1,
        "duration": number % 500 / 1000,
        "trace_id": new_id(),
        "response": _RESPONSE,
    }
    if not is_failed:
        return CallbackDelivered(**fields, status=200)
    return CallbackAttemptFailed(
        **fields,
        status=503,
        error="the receiver responded with 503",
        next_at=now + timedelta(seconds=5),
    )


# As long as an encrypted "ok".
_RESPONSE: Final = base64.b64encode(bytes(64)).decode()


async def beside_delivery(rig: Rig) -> Section:
    """Part x."""
    key = {"RINGBACK_SECRETS_KEY": base64.b64encode(os.urandom(32)).decode()}
    database_url = rig.database.create_database("beside_delivery")
    await migrate(database_url, SCHEMA)
    with_database = {**key, "RINGBACK_DATABASE_URL": database_url}
    running = "and the journal running"
    variants: dict[str, dict[str, str]] = {
        "facts in the stream": {},
        "and responses encrypted": key,
        running: with_database,
    }
    async with AsyncExitStack() as stack:
        sites = {"": await stack.enter_async_context(rig.site(Contender.OURS))}
        for name, environment in variants.items():
            site = await stack.enter_async_context(
                rig.site(Contender.OURS, environment=environment)
            )
            await _declare_stream(site)
            sites[name] = site
        stack.enter_context(rig.services(("journal",), sites[running].url, with_database))
        bursts = await _bursts(sites)
    plain = bursts.pop("")
    rows = [row for name, each in bursts.items() for row in _beside(name, each, plain)]
    notes = [
        f"{len(plain)} rounds of {BURST:,} callbacks each, in turn; medians of rounds and ratios",
        "without: no queue gets the facts, and the broker drops them",
        "the journal shares the cores with the sender, the broker and the receiver",
    ]
    return Section("x", "Journal: its cost for delivery", "without", rows, notes)


async def _declare_stream(site: Site) -> None:
    async with connect(site.url, name="bench") as broker:
        await declare(broker.connection, topology().only((JOURNAL_FACTS,)))


async def _bursts(sites: dict[str, Site]) -> dict[str, list[Burst]]:
    """Measure the sites in turn. Each round begins with another one."""
    bursts: dict[str, list[Burst]] = {name: [] for name in sites}
    order = list(sites)
    for _ in rounds(BURST_ROUNDS, SECONDS, minimum=3):
        for name in order:
            bursts[name].append(await burst(sites[name], (Group.HEALTHY,), BURST))
        order.append(order.pop(0))
    return bursts


def _beside(name: str, ours: list[Burst], plain: list[Burst]) -> list[Row]:
    pairs = list(zip(ours, plain, strict=True))
    cpu = median([a.cpu / b.cpu for a, b in pairs])
    return [
        Row(
            f"CPU, {name}",
            "µs",
            median([each.cpu for each in ours]),
            median([each.cpu for each in plain]),
            cpu,
            f"at most {MAX_COST}",
            at_most(cpu, MAX_COST),
        ),
        Row(
            f"rate, {name}",
            "/s",
            median([each.rate for each in ours]),
            median([each.rate for each in plain]),
            median([a.rate / b.rate for a, b in pairs]),
        ),
    ]
