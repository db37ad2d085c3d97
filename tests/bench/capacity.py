"""Part v: what a callback costs the broker, the database and each process, and how much it stores.

All processes that handle a scheduled callback run: scheduler, callback and journal, one of each.
"""

import asyncio
import base64
import json
import os
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import asyncpg

from deploy.local.broker import Broker
from services.journal.app import SCHEMA as JOURNAL
from services.scheduler.app import SCHEMA as SCHEDULER
from shared.amqp.codec import Properties
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.postgres.migrations import migrate
from shared.topology import topology
from tests.bench.rig import (
    DATA,
    Contender,
    Rig,
    Sender,
    Site,
    StalledError,
    cpu_of,
    running_publisher,
    tree,
)
from tests.bench.sink import Group
from tests.bench.table import Row, Section

# Callbacks of each measurement, and callbacks that wait until tomorrow.
COUNT: Final = 5_000
WAITING: Final = 50_000
# Messages of 1 kB in a queue without a consumer.
QUEUED: Final = 50_000
QUEUE: Final = "bench.waiting"
BATCH: Final = 1000
TIMEOUT: Final = 120.0
# Seconds without a change after which everything is stored. RabbitMQ updates its figures every 5.
QUIET: Final = 6.0
# The context of a scheduled callback: with its names and quotation marks, 250 bytes.
CONTEXT: Final = "x" * 220


@dataclass(slots=True)
class Stand:
    """The running processes, and what they share."""

    rig: Rig
    broker: Broker
    site: Site
    publisher: Publisher
    database: asyncpg.Connection
    processes: dict[str, Sender]

    async def figures(self) -> dict[str, float]:
        """Return the counters of everything: CPU in seconds, messages, bytes."""
        stats = self._management(f"vhosts/{quote(_vhost(self.site.url), safe='')}")
        messages = stats.get("message_stats", {})
        wal = await self.database.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        entries = await self.database.fetchval("SELECT count(*) FROM journal.entries")
        return {
            **{f"cpu {name}": each.cpu() for name, each in self.processes.items()},
            "cpu broker": cpu_of([self.broker.pid or 0]),
            "cpu postgres": cpu_of(tree(self.rig.database.pid or 0)),
            **{name: messages.get(name, 0) for name in ("publish", "confirm", "deliver", "ack")},
            "wal": float(wal),
            "disk broker": float(_written(self.broker.pid or 0)),
            "entries": float(entries),
            "journal": await self.size("journal.entries"),
            "letters": await self.size("journal.letters"),
        }

    async def size(self, table: str, *, indexes: bool = True) -> float:
        """Return the bytes of a table with its partitions, and with or without its indexes."""
        function = "pg_total_relation_size" if indexes else "pg_table_size"
        size = await self.database.fetchval(
            f"SELECT sum({function}(oid)) FROM pg_class WHERE oid = $1::text::regclass"  # noqa: S608 - a constant
            " OR oid IN (SELECT relid FROM pg_partition_tree($1::text::regclass))",
            table,
        )
        return float(size)

    async def cost(self, count: int, work: Callable[[], Awaitable[None]]) -> dict[str, float]:
        """Do the work, wait until nothing changes any more, and return the differences for one."""
        before = await self.figures()
        await work()
        await self._quiet()
        after = await self.figures()
        return {name: (after[name] - before[name]) / count for name in after}

    async def _quiet(self) -> None:
        """Wait until the journal has stored everything, and RabbitMQ has counted it."""
        last, since = -1, time.monotonic()
        while time.monotonic() - since < QUIET:
            for process in self.processes.values():
                process.check()
            count = await self.database.fetchval("SELECT count(*) FROM journal.entries")
            if count != last:
                last, since = count, time.monotonic()
            await asyncio.sleep(0.25)

    def _management(self, path: str) -> Any:
        login = base64.b64encode(b"guest:guest").decode()
        request = urllib.request.Request(  # noqa: S310 - the private broker
            f"{self.broker.management_url}api/{path}", headers={"Authorization": f"Basic {login}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.load(response)


def _vhost(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def _written(pid: int) -> int:
    """Return the bytes that the process has had written to disks."""
    text = Path(f"/proc/{pid}/io").read_text()
    return int(text.partition("\nwrite_bytes: ")[2].split()[0])


def _resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def _on_disk(directory: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())


def _schedule(url: str, number: int, delay: float) -> OutgoingMessage:
    body = {
        "delay": delay,
        "url": url,
        "hmac_secret": "your-secret-key",
        "context": {"data": CONTEXT, "id": number},
        "notify_scheme": {"transport": "http", "method": "POST", "format": "context"},
    }
    properties = Properties(
        content_type="application/json",
        type="ScheduleCallback",
        message_id=new_id(),
        delivery_mode=PERSISTENT,
    )
    return OutgoingMessage("schedule", properties, json.dumps(body).encode(), exchange="schedules")


async def _schedule_all(stand: Stand, count: int, delay: float) -> None:
    urls = stand.site.sink.alternating((Group.HEALTHY,))
    for start in range(0, count, BATCH):
        await stand.publisher.publish_all(
            _schedule(urls[n % len(urls)], next(stand.site.numbers), delay)
            for n in range(start, min(start + BATCH, count))
        )


async def _until(stand: Stand, query: str, expected: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while await stand.database.fetchval(query) != expected:
        if time.monotonic() > deadline:
            raise StalledError(f"{query} is not {expected} after {TIMEOUT:.0f} s")
        await asyncio.sleep(0.1)


async def _respond(stand: Stand, group: Group, responses: int) -> None:
    """Feed the messages of a measurement, and wait for this many responses to each."""
    expected = stand.site.counters.responses[group] + COUNT * responses
    await stand.site.feed((group,), COUNT)
    if not await stand.site.until(group, expected, TIMEOUT):
        raise StalledError("the callbacks did not end in time")


_UNFINISHED: Final = "SELECT count(*) FROM scheduler.scheduled_callbacks"
_FINISHED: Final = "SELECT count(*) FROM scheduler.finished_callbacks"


async def _measure(stand: Stand) -> list[Row]:
    async def wait_until_tomorrow() -> None:
        await _schedule_all(stand, WAITING, 86_400)
        await _until(stand, _UNFINISHED, WAITING)

    async def due_now() -> None:
        await _schedule_all(stand, COUNT, 2)
        await _until(stand, _FINISHED, COUNT)

    waiting = await stand.cost(WAITING, wait_until_tomorrow)
    sizes = [
        Row("scheduled, waiting: rows", "bytes", await _stored(stand, indexes=False)),
        Row("scheduled, waiting: with indexes", "bytes", await _stored(stand, indexes=True)),
    ]
    scheduled = await stand.cost(COUNT, due_now)
    finished = await stand.size("scheduler.finished_callbacks") / COUNT
    plain = await stand.cost(COUNT, lambda: _respond(stand, Group.HEALTHY, 1))
    failing = await stand.cost(COUNT, lambda: _respond(stand, Group.FLAKY, 2))
    dead = await stand.cost(COUNT, lambda: _respond(stand, Group.GONE, 1))
    retry = {name: failing[name] - plain[name] for name in plain}
    return [
        *sizes,
        Row("scheduled, ended: entry in the history", "bytes", finished),
        *_rows("to schedule", waiting),
        *_rows("scheduled and delivered", scheduled),
        *_rows("delivered", plain),
        *_rows("a retry in addition", retry),
        *_rows("dead-lettered", dead),
        Row("dead letter in the index", "bytes", dead["letters"]),
        *await _queued(stand),
    ]


async def _stored(stand: Stand, *, indexes: bool) -> float:
    tables = ("scheduler.callback_requests", "scheduler.scheduled_callbacks")
    return sum([await stand.size(table, indexes=indexes) for table in tables]) / WAITING


def _rows(what: str, cost: dict[str, float]) -> list[Row]:
    return [
        *(
            Row(f"{what}: CPU of {name.removeprefix('cpu ')}", "µs", cost[name] * 1e6)
            for name in cost
            if name.startswith("cpu ")
        ),
        *(
            Row(f"{what}: {name} of the broker", "", cost[name])
            for name in ("publish", "confirm", "deliver", "ack")
        ),
        Row(f"{what}: broker, written to disk", "bytes", cost["disk broker"]),
        Row(f"{what}: WAL of PostgreSQL", "bytes", cost["wal"]),
        Row(f"{what}: entries of the journal", "", cost["entries"]),
        Row(f"{what}: journal", "bytes", cost["journal"]),
    ]


async def _queued(stand: Stand) -> Sequence[Row]:
    """Measure messages that wait in a quorum queue."""
    async with connect(stand.site.url, name="bench") as connection:
        channel = await connection.connection.channel(publisher_confirms=False)
        await channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    properties = Properties(message_id="bench", delivery_mode=PERSISTENT)
    body = DATA.encode()
    pid, data = stand.broker.pid or 0, stand.broker.directory / "data"
    memory, disk = _resident(pid), _on_disk(data)
    begin = time.monotonic()
    for _ in range(0, QUEUED, BATCH):
        await stand.publisher.publish_all(
            OutgoingMessage(QUEUE, properties, body) for _ in range(BATCH)
        )
    seconds = time.monotonic() - begin
    return [
        Row("in a queue: publishes", "/s", QUEUED / seconds),
        Row("in a queue: memory of the broker", "bytes", (_resident(pid) - memory) / QUEUED),
        Row("in a queue: disk of the broker", "bytes", (_on_disk(data) - disk) / QUEUED),
    ]


async def capacity(rig: Rig) -> Section:
    """Part v."""
    if not isinstance(rig.broker, Broker):
        raise StalledError("the capacity of one broker is measured")
    database_url = rig.database.create_database("capacity")
    for schema in (SCHEDULER, JOURNAL):
        await migrate(database_url, schema)
    environment = {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_SECRETS_KEY": base64.b64encode(os.urandom(32)).decode(),
    }
    database = await asyncpg.connect(database_url)
    async with rig.site(Contender.OURS, environment=environment) as site:
        async with connect(site.url, name="bench") as broker:
            await declare(broker.connection, topology())
        with rig.services(("scheduler", "journal"), site.url, environment) as started:
            processes = {"callback": site.sender, **started}
            async with running_publisher(site.url, topology()) as publisher:
                stand = Stand(rig, rig.broker, site, publisher, database, processes)
                rows = await _measure(stand)
    await database.close()
    notes = [
        f"{COUNT:,} of each, and {WAITING:,} that wait; bodies of 1 kB, contexts of 250 bytes",
        "one process of scheduler, callback and journal each; a broker of one node",
    ]
    return Section("v", "Capacity: the cost of one", "", rows, notes)
