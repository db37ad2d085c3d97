"""Parts g and h: the scheduler's intake and punctuality, compared with pgqueuer."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import aiohttp
import asyncpg
from pgqueuer.queries import Queries

from deploy.local.daemon import CHECKOUT, free_port
from shared.amqp import codec
from shared.amqp.codec import Properties
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel
from shared.amqp.message import PERSISTENT
from shared.amqp.message import parse_delivery as message_in
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.amqp.subscription import ignore_delivery
from shared.contracts.facts import FACTS
from shared.process.health import Health
from shared.topology import CALLBACKS, OUTCOMES, topology
from tests.bench.rig import POLL, SETPRIV, Rig, Sender, StalledError, quantile
from tests.bench.table import Row, Section, at_least, at_most

# Callbacks due at one instant, and callbacks in the queue for the intake.
SIMULTANEOUS: Final = 20_000
# Callbacks due per second, evenly spread, and for how many seconds.
RATE: Final = 1000
SECONDS: Final = 8
# Callbacks that are due tomorrow and stay in the table during the measurement.
FEW, MANY = 10_000, 2_000_000
# Callbacks that one statement inserts.
FILL_BATCH: Final = 1_000_000
# Seconds between scheduling the last callback and the first due time.
LEAD: Final = 4.0
TIMEOUT: Final = 60.0
# pgqueuer's best batch size out of 10 (its default), 100 and 500, for each of the two loads.
STEADY_BATCH, SIMULTANEOUS_BATCH = 100, 500
CLIENTS: Final = 64
HTTP_SECONDS: Final = 5.0
BATCH: Final = 1000

_DUE: Final = re.compile(rb'"due": ?"([0-9.]+)"')


@dataclass(slots=True)
class Arrivals:
    """Consumer of the queue `callbacks` that reports each callback as delivered."""

    publisher: Publisher
    lags: list[float] = field(default_factory=list)  # seconds from due time to arrival
    paused: bool = False  # as if receivers were slow: no facts yet
    _unreported: list[Delivery] = field(default_factory=list)

    def receive(self, delivery: Delivery) -> None:
        now = time.time()
        due = _DUE.search(delivery.body)
        if due is not None:
            self.lags.append(now - float(due[1]))
        self._unreported.append(delivery)

    async def settle(self, channel: InterceptedChannel) -> None:
        """Acknowledge the arrivals and, unless paused, publish their facts, every 10 ms."""
        acked = 0
        while True:
            await asyncio.sleep(0.01)
            if self._unreported and self._unreported[-1].tag > acked:
                acked = self._unreported[-1].tag
                channel.write(codec.encode_ack(channel.number, acked, multiple=True))
            if not self.paused:
                facts = [_delivered(delivery) for delivery in self._unreported]
                self._unreported = []
                await self.publisher.publish_all(
                    _facts(facts[start : start + 500]) for start in range(0, len(facts), 500)
                )

    async def until(self, count: int, check: Callable[[], None], timeout: float) -> None:  # noqa: ASYNC109 - the error names it
        """Wait for this many arrivals, for at most `timeout` seconds.

        Raises:
            StalledError: they did not arrive in time.
        """
        deadline = time.monotonic() + timeout
        while len(self.lags) < count:
            check()
            if time.monotonic() > deadline:
                raise StalledError(f"{len(self.lags)} of {count} arrived in {timeout:.0f} s")
            await asyncio.sleep(POLL)


def _delivered(delivery: Delivery) -> dict[str, object]:
    message = message_in(delivery)
    return {
        "type": "callback.delivered",
        "fact_id": new_id(),
        "at": datetime.now(UTC).isoformat(),
        "callback_id": message.id,
        "client_id": None,
        "target": "http://127.0.0.1:9",
        "attempt": 1,
        "status": 200,
        "duration": 0.001,
        "owner": message.owner,
        "dispatch": message.dispatch,
    }


def _facts(facts: list[dict[str, object]]) -> OutgoingMessage:
    return OutgoingMessage(
        "callback.delivered.scheduler",
        Properties(
            content_type="application/json",
            type=FACTS,
            message_id=new_id(),
            delivery_mode=PERSISTENT,
        ),
        json.dumps({"facts": facts}).encode(),
        exchange=OUTCOMES,
        mandatory=False,
    )


@dataclass(slots=True)
class Site:
    """A running scheduler with an empty virtual host and database, and its arrivals."""

    url: str
    environment: dict[str, str]
    database: asyncpg.Connection
    publisher: Publisher
    scheduler: Sender
    arrivals: Arrivals

    async def schedule(self, due: Sequence[float]) -> None:
        """Publish a ScheduleCallback for each due time (epoch seconds), confirmed."""
        for start in range(0, len(due), BATCH):
            await self.publisher.publish_all(
                _schedule_message(at) for at in due[start : start + BATCH]
            )

    async def waiting(self) -> int:
        count = await self.database.fetchval("SELECT count(*) FROM scheduler.scheduled_callbacks")
        return int(count)

    async def fill(self, rows: int) -> None:
        """Fill the tables with copies of one callback, so that this many are due tomorrow."""
        if not await self.waiting():
            await self.schedule([time.time() + 86_400])
            while not await self.waiting():  # noqa: ASYNC110 - another process inserts it
                await asyncio.sleep(POLL)
        while (missing := rows - await self.waiting()) > 0:
            await self._copy(min(missing, FILL_BATCH), {}, time.time() + 86_400, 0.01)
        await self.settle_tables()

    async def fill_due(self, rows: int, client: str, due: float) -> None:
        """Add copies of the callback that `fill` has made, for another client and this due time."""
        await self._copy(rows, {"client_id": client, "context": "null"}, due, 0.0)
        await self.settle_tables()

    async def _copy(self, rows: int, fields: dict[str, str], due: float, interval: float) -> None:
        """Add copies of one callback with these fields and ascending ids, as UUIDs 7 are."""
        fields = {"id": "ids.id", **{name: f"'{value}'" for name, value in fields.items()}}
        requested = await self._columns("scheduler.callback_requests", fields)
        fields["next_at"] = "to_timestamp($2::float8 + n * $3::float8)"
        scheduled = await self._columns("scheduler.scheduled_callbacks", fields)
        await self.database.execute(
            f"""
            WITH ids AS MATERIALIZED (
                SELECT rpad(lpad(to_hex($4::bigint + n), 16, '0'), 32, '0')::uuid AS id, n
                FROM generate_series(1, $1::int) n
            ), requested AS (
                INSERT INTO scheduler.callback_requests ({", ".join(requested)})
                SELECT {", ".join(requested.values())}
                FROM ids, (SELECT * FROM scheduler.callback_requests LIMIT 1) one
            )
            INSERT INTO scheduler.scheduled_callbacks ({", ".join(scheduled)})
            SELECT {", ".join(scheduled.values())}
            FROM ids, (SELECT * FROM scheduler.scheduled_callbacks LIMIT 1) one
            """,  # noqa: S608 - the names and values are ours
            rows,
            due,
            interval,
            int(time.time() * 1000) << 16,
            timeout=400,
        )

    async def _columns(self, table: str, fields: dict[str, str]) -> dict[str, str]:
        """Return an expression for each column of a table: a field, or the value of `one`."""
        found = await self.database.fetch(
            "SELECT attname FROM pg_attribute"
            " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
            table,
        )
        return {name: fields.get(name, f"one.{name}") for (name,) in found}

    async def settle_tables(self) -> None:
        """Finish the work that a real database would have done meanwhile."""
        await self.database.execute("VACUUM ANALYZE scheduler.callback_requests", timeout=400)
        await self.database.execute("VACUUM ANALYZE scheduler.scheduled_callbacks", timeout=400)
        await self.database.execute("CHECKPOINT", timeout=120)

    async def fire(self, due: Sequence[float]) -> list[float]:
        """Schedule callbacks for these due times; return the lags in the order of arrival."""
        before = len(self.arrivals.lags)
        await self.schedule(due)
        timeout = max(due) - time.time() + TIMEOUT
        await self.arrivals.until(before + len(due), self.scheduler.check, timeout)
        return self.arrivals.lags[before:]


def _schedule_message(due: float) -> OutgoingMessage:
    body = {
        "run_at": datetime.fromtimestamp(due, UTC).isoformat(),
        "url": "http://127.0.0.1:9/hooks/bench",
        "hmac_secret": "your-secret-key",
        "context": {"due": f"{due:.6f}", "data": "x" * 200},
    }
    properties = Properties(
        content_type="application/json",
        type="ScheduleCallback",
        message_id=new_id(),
        delivery_mode=PERSISTENT,
    )
    return OutgoingMessage("schedule", properties, json.dumps(body).encode(), exchange="schedules")


@asynccontextmanager
async def scheduler_site(rig: Rig, name: str) -> AsyncIterator[Site]:
    url = rig.broker.add_vhost(name)
    database_url = rig.database.create_database(name)
    environment = {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_SECRETS_KEY": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
        "RINGBACK_HTTP_PORT": str(free_port()),
    }
    migrated = await asyncio.to_thread(
        rig.start(("-m", "services", "migrate"), url, f"{name}-migrate", environment).process.wait
    )
    if migrated:
        raise StalledError("`ringback migrate` failed")
    tables = topology()
    async with connect(url, name="bench") as broker:
        await declare(broker.connection, tables)
    publisher = Publisher(url, name="bench feed", topology=tables, health=Health())
    publishing = asyncio.create_task(publisher.run())
    scheduler = rig.start(("-m", "services.scheduler"), url, f"{name}-scheduler", environment)
    database = await asyncpg.connect(database_url)
    try:
        await publisher.ready()
        async with connect(url, name="bench callbacks") as broker:
            arrivals = Arrivals(publisher)
            channel, intercepted = await broker.channel(confirms=False)
            intercepted.on_delivery = arrivals.receive
            await channel.basic_consume(CALLBACKS, ignore_delivery)
            settling = asyncio.create_task(arrivals.settle(intercepted))
            site = Site(url, environment, database, publisher, scheduler, arrivals)
            await site.fire([time.time()] * 500)  # warm up
            while await site.waiting():  # noqa: ASYNC110 - another process settles them
                await asyncio.sleep(POLL)
            yield site
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)
    finally:
        scheduler.signal(signal.SIGKILL)
        scheduler.process.wait()
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        await database.close()
        rig.broker.delete_vhost(name)
        rig.database.drop_database(name)


async def intake(rig: Rig) -> Section:
    """Part g."""
    async with scheduler_site(rig, "intake") as site:
        tomorrow = time.time() + 86_400
        before = await site.waiting()
        site.scheduler.signal(signal.SIGSTOP)
        await site.schedule([tomorrow] * SIMULTANEOUS)
        cpu = site.scheduler.cpu()
        begin = time.monotonic()
        site.scheduler.signal(signal.SIGCONT)
        while await site.waiting() < before + SIMULTANEOUS:
            site.scheduler.check()
            if time.monotonic() > begin + TIMEOUT:
                raise StalledError("the scheduler did not insert all callbacks in time")
            await asyncio.sleep(0.02)
        rate = SIMULTANEOUS / (time.monotonic() - begin)
        cpu = (site.scheduler.cpu() - cpu) / SIMULTANEOUS * 1e6
        single, batch = await _over_http(rig, site)
    rows = [
        Row("over AMQP", "/s", rate, target="at least 8,000", verdict=at_least(rate, 8000)),
        Row("over AMQP, CPU of the scheduler", "µs", cpu),
        Row("over HTTP", "/s", single, target="at least 1,500", verdict=at_least(single, 1500)),
        Row("over HTTP by 1,000", "/s", batch, target="10,000", verdict=at_least(batch, 10_000)),
    ]
    notes = [
        f"over AMQP: {SIMULTANEOUS:,} queued messages; over HTTP: {CLIENTS} clients, one gateway",
        "broker, database, scheduler, gateway and clients share the cores",
    ]
    return Section("g", "Scheduling: intake of one process", "", rows, notes)


async def _over_http(rig: Rig, site: Site) -> tuple[float, float]:
    """Return the callbacks created per second, one and 1,000 in a request."""
    gateway = rig.start(("-m", "services.gateway"), site.url, "gateway", site.environment)
    base = f"http://127.0.0.1:{site.environment['RINGBACK_HTTP_PORT']}"
    at = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    one = {"run_at": at, "url": "http://127.0.0.1:9/hooks/bench", "hmac_secret": "your-secret-key"}
    single, many = json.dumps(one).encode(), json.dumps({"callbacks": [one] * BATCH}).encode()
    try:
        async with aiohttp.ClientSession(base, connector=aiohttp.TCPConnector(limit=0)) as session:
            await _ready(session, gateway)
            await _load(session, "/v1/callbacks", single, 0.5)
            rate = await _load(session, "/v1/callbacks", single, HTTP_SECONDS)
            by_batch = await _load(session, "/v1/callbacks/batch", many, HTTP_SECONDS, clients=4)
    finally:
        gateway.signal(signal.SIGKILL)
        gateway.process.wait()
    return rate, by_batch * BATCH


async def _ready(session: aiohttp.ClientSession, gateway: Sender) -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        gateway.check()
        try:
            async with session.get("/readyz") as response:
                if response.ok:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.05)
    raise StalledError("the gateway was not ready in time")


async def _load(
    session: aiohttp.ClientSession, path: str, body: bytes, seconds: float, clients: int = CLIENTS
) -> float:
    """Return the successful requests per second."""
    done = 0
    begin = time.monotonic()

    async def client() -> None:
        nonlocal done
        while time.monotonic() - begin < seconds:
            headers = {"Content-Type": "application/json"}
            async with session.post(path, data=body, headers=headers) as response:
                text = await response.text()
                if not response.ok:
                    raise StalledError(f"{path} responded with {response.status}: {text[:500]}")
            done += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (time.monotonic() - begin)


@dataclass(frozen=True, slots=True)
class Timing:
    """p50, p99: lag in seconds with a steady load. rate: per second, all due at one instant."""

    p50: float
    p99: float
    rate: float


async def steady_lags(site: Site) -> list[float]:
    """Return the lags in seconds with a steady load."""
    begin = time.time() + LEAD + RATE * SECONDS / 5000
    return await site.fire([begin + n / RATE for n in range(RATE * SECONDS)])


async def _measure(site: Site) -> Timing:
    steady = await steady_lags(site)
    due = time.time() + LEAD + SIMULTANEOUS / 5000
    site.arrivals.paused = True
    simultaneous = await site.fire([due] * SIMULTANEOUS)
    site.arrivals.paused = False
    if min(steady + simultaneous) < 0:
        raise StalledError("a callback was sent before its due time")
    return Timing(quantile(steady, 0.5), quantile(steady, 0.99), SIMULTANEOUS / max(simultaneous))


async def _measure_pgqueuer(rig: Rig) -> Timing:
    url = rig.database.create_database("pgqueuer")
    async with asyncpg.create_pool(url, min_size=1, max_size=2) as pool:
        queries = Queries.from_asyncpg_pool(pool)
        await queries.install()
        begin = time.time() + LEAD + 1
        steady = await _pgqueuer_lags(
            url, queries, [begin + n / RATE for n in range(RATE * SECONDS)], STEADY_BATCH
        )
        simultaneous = await _pgqueuer_lags(
            url, queries, [time.time() + LEAD + 1] * SIMULTANEOUS, SIMULTANEOUS_BATCH
        )
    return Timing(quantile(steady, 0.5), quantile(steady, 0.99), SIMULTANEOUS / max(simultaneous))


async def _pgqueuer_lags(
    url: str, queries: Queries, due: Sequence[float], batch: int
) -> list[float]:
    """Return the lags of pgqueuer's worker for jobs with these due times."""
    worker = await asyncio.create_subprocess_exec(
        *(SETPRIV, "--pdeathsig", "KILL", "--", sys.executable),
        *("-m", "tests.bench.pgqueuer_worker", url, str(len(due)), str(batch)),
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        limit=1 << 24,
    )
    assert worker.stdout is not None
    await worker.stdout.readline()
    for start in range(0, len(due), BATCH):
        part = due[start : start + BATCH]
        now = time.time()
        await queries.enqueue(
            ["callback"] * len(part),
            [f"{at:.6f}".encode() for at in part],
            [0] * len(part),
            [timedelta(seconds=at - now) for at in part],
        )
    lags: list[float] = json.loads(await worker.stdout.readline())
    await worker.wait()
    return lags


async def on_time(rig: Rig) -> Section:
    """Part h."""
    pgqueuer = await _measure_pgqueuer(rig)
    async with scheduler_site(rig, "few") as site:
        await site.fill(FEW)
        few = await _measure(site)
    async with scheduler_site(rig, "many") as site:
        await site.fill(MANY)
        many = await _measure(site)
    rows = [
        Row("lag, median", "ms", few.p50 * 1e3, pgqueuer.p50 * 1e3, few.p50 / pgqueuer.p50),
        Row(
            "lag, 99 %",
            "ms",
            few.p99 * 1e3,
            pgqueuer.p99 * 1e3,
            few.p99 / pgqueuer.p99,
            "at most 1.0 (aim 25 ms)",
            at_most(few.p99 / pgqueuer.p99, 1.0),
        ),
        Row(
            f"{SIMULTANEOUS:,} due at one instant",
            "/s",
            few.rate,
            pgqueuer.rate,
            few.rate / pgqueuer.rate,
            "at least 1.0",
            at_least(few.rate / pgqueuer.rate, 1.0),
        ),
        Row(
            f"lag, 99 %, with {MANY:,} waiting",
            "ms",
            many.p99 * 1e3,
            few.p99 * 1e3,
            many.p99 / few.p99,
            "at most 1.2",
            at_most(many.p99 / few.p99, 1.2),
        ),
        Row(
            f"{SIMULTANEOUS:,} at one instant, {MANY:,} waiting",
            "/s",
            many.rate,
            few.rate,
            many.rate / few.rate,
            "at least 0.83",
            at_least(many.rate / few.rate, 1 / 1.2),
        ),
    ]
    notes = [
        f"lag: from the due time to the consumer of `callbacks`; {RATE:,} are due per second",
        f"compared with: pgqueuer, to its handler; for {MANY:,} waiting: Ringback with {FEW:,}",
    ]
    return Section("h", "Scheduling: punctuality", "pgqueuer", rows, notes)
