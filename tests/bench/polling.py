"""Part t: open polls on one gateway process: memory, latency, and requests per event."""

import asyncio
import json
import random
import signal
import socket
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Final

import aiohttp
import asyncpg
from prometheus_client.parser import text_string_to_metric_families

from services.subscriptions.app import SCHEMA
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.contracts.user_events import USER_EVENT
from shared.postgres.migrations import migrate
from shared.topology import USER_EVENTS
from tests.bench.expansion import site
from tests.bench.pollers import pollers
from tests.bench.rig import Rig, Sender, StalledError, quantile
from tests.bench.table import Row, Section, at_most

POLLS: Final = 5_000
RATE: Final = 200
SECONDS: Final = 20.0
# Seconds without events, in which nothing may be read. All of it ends before the polls do.
IDLE: Final = 5.0
TIMEOUT: Final = 40.0

_FILL: Final = """
WITH added AS (
    INSERT INTO subscriptions.users (name, password_hash, request_id)
    SELECT 'user' || n, '', '' FROM generate_series(1, $1::bigint) AS n RETURNING id
)
INSERT INTO subscriptions.tokens (hash, user_id, position, expires_at)
SELECT sha256(('bench-' || id)::bytea), id, 0, now() + interval '1 day' FROM added
"""
_TRANSACTIONS: Final = """
SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()
"""


async def polling(rig: Rig) -> Section:
    """Part t."""
    name = "polling"
    async with site(rig, name) as (url, _, publisher):
        database_url = rig.database.create_database(name)
        await migrate(database_url, SCHEMA)
        database = await asyncpg.connect(database_url)
        await database.execute(_FILL, POLLS)
        await database.execute("VACUUM ANALYZE subscriptions.users, subscriptions.tokens")
        http, gateway_metrics, metrics = (free_port() for _ in range(3))
        quiet = {"RINGBACK_LOG_LEVEL": "WARNING"}
        subscriptions = rig.start(
            ("-m", "services.subscriptions"),
            url,
            "subscriptions",
            {
                **quiet,
                "RINGBACK_DATABASE_URL": database_url,
                "RINGBACK_METRICS_PORT": str(metrics),
                "RINGBACK_SECRETS_KEY": b64encode(bytes(32)).decode(),
            },
        )
        gateway = rig.start(
            ("-m", "services.gateway"),
            url,
            "gateway",
            {
                **quiet,
                "RINGBACK_HTTP_PORT": str(http),
                "RINGBACK_METRICS_PORT": str(gateway_metrics),
            },
        )
        processes = (subscriptions, gateway)

        async def reads() -> float:
            return await _metric(
                metrics, "ringback_requests_answered_total", operation="ReadEvents"
            )

        async def open_() -> bool:
            return await _metric(gateway_metrics, "ringback_open_polls") == POLLS

        async def all_read() -> bool:
            return await open_() and await reads() >= POLLS

        try:
            await _until(lambda: _is_ready(metrics), processes)
            await _until(lambda: _has_part(gateway_metrics, "user events"), processes)
            before = gateway.resident()
            with pollers(http, POLLS) as control:
                await _until(all_read, processes)
                resident = gateway.resident()
                counted = await reads()
                await asyncio.sleep(IDLE)
                idle = await reads() - counted
                cpu = [process.cpu() for process in processes]
                counted, transactions = await reads(), await database.fetchval(_TRANSACTIONS)
                published = await _publish(publisher)
                latencies = await _latencies(control, published, processes)
                per_event = (await reads() - counted) / published
                await asyncio.sleep(1.5)  # for PostgreSQL's statistics
                queries = (await database.fetchval(_TRANSACTIONS) - transactions) / published
                cpu = [
                    (process.cpu() - earlier) / published * 1e6
                    for process, earlier in zip(processes, cpu, strict=True)
                ]
        finally:
            for process in processes:
                process.signal(signal.SIGKILL)
                process.process.wait()
            await database.close()
    slowest = quantile(latencies, 0.99) * 1000
    rows = [
        Row(
            f"memory of the gateway with {POLLS:,} open polls",
            "MB",
            resident,
            target="at most 250",
            verdict=at_most(resident, 250),
        ),
        Row("memory of an open poll", "kB", (resident - before) / POLLS * 1000),
        Row(
            f"reads in {IDLE:.0f} s without events",
            "",
            idle,
            target="0",
            verdict=at_most(idle, 0),
        ),
        Row("from publish to the response, p50", "ms", quantile(latencies, 0.5) * 1000),
        Row(
            "from publish to the response, p99",
            "ms",
            slowest,
            target="at most 100",
            verdict=at_most(slowest, 100),
        ),
        Row("reads per event, with the next poll", "", per_event),
        Row("transactions per event", "", queries),
        Row("CPU of subscriptions per event", "µs", cpu[0]),
        Row("CPU of the gateway per event", "µs", cpu[1]),
    ]
    notes = [
        f"{RATE} user events a second for {SECONDS:.0f} s, each to one of {POLLS:,} users who poll",
        "clients without cursors, in a process of their own",
    ]
    return Section("t", "Long polls", "", rows, notes)


async def _publish(publisher: Publisher) -> int:
    """Publish at a steady rate, and return the number of events."""
    begin = time.monotonic()
    confirms: list[asyncio.Future[None]] = []
    while (elapsed := time.monotonic() - begin) < SECONDS:
        confirms += [publisher.publish(_event()) for _ in range(len(confirms), int(elapsed * RATE))]
        await asyncio.sleep(0.002)
    await asyncio.gather(*confirms)
    return len(confirms)


def _event() -> OutgoingMessage:
    user_id = random.randint(1, POLLS)
    body = {"user_id": user_id, "type": "bench", "event": {"at": time.monotonic()}}
    properties = Properties(
        content_type="application/json",
        type=USER_EVENT,
        message_id=new_id(),
        delivery_mode=PERSISTENT,
    )
    return OutgoingMessage(
        str(user_id), properties, json.dumps(body).encode(), exchange=USER_EVENTS
    )


async def _latencies(control: Connection, count: int, processes: tuple[Sender, ...]) -> list[float]:
    """Return the latencies once all events have arrived."""
    found: list[float] = []

    async def arrived() -> bool:
        nonlocal found
        control.send(None)
        found = await asyncio.to_thread(control.recv)
        return len(found) >= count

    await _until(arrived, processes)
    return found


async def _until(condition: Callable[[], Awaitable[bool]], processes: tuple[Sender, ...]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not await condition():
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise StalledError("the polls or their events did not arrive in time")
        await asyncio.sleep(0.1)


async def _get(port: int, path: str) -> str:
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}{path}") as response,
        ):
            return await response.text()
    except aiohttp.ClientConnectionError:
        return ""


async def _is_ready(port: int) -> bool:
    return '"status": "ready"' in (await _get(port, "/readyz")).replace('":"', '": "')


async def _has_part(port: int, part: str) -> bool:
    text = await _get(port, "/readyz")
    return bool(text) and json.loads(text)["parts"].get(part) == "ok"


async def _metric(port: int, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(await _get(port, "/metrics"))
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
