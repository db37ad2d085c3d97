"""Part q: a mailing to some clients of a large directory, from its creation to the queue."""

import json
import signal
import time
from asyncio import create_task, sleep
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from services.mailings.app import SCHEMA
from shared.amqp.rpc_client import RpcClient
from shared.contracts.mailing_requests import CREATE_MAILING
from shared.contracts.requests import Failure
from shared.postgres.migrations import migrate
from shared.process.health import Health
from shared.registry import BULK, CHANNELS
from tests.bench.expansion import receiving, site, until
from tests.bench.rig import Rig
from tests.bench.table import Row, Section, at_least, at_most

CLIENTS: Final = 1_000_000
# Every fifth client has the tag `vip`, and some of these have the tag `few`.
MANY: Final = 200_000
FEW: Final = 2_000

# Clients of a filter are spread over the whole directory.
_FILL: Final = """
INSERT INTO mailings.clients (client_id, id, phone, operator_code, tag, timezone)
SELECT '', ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
    (79000000000 + n)::text, 900 + n % 10,
    CASE WHEN n % 500 = 0 THEN 'few' WHEN n % 5 = 0 THEN 'vip' ELSE 'other' END, 'Europe/Moscow'
FROM generate_series(1, $1::bigint) AS n
"""


async def mailing(rig: Rig) -> Section:
    """Part q."""
    name = "mailing"
    async with site(rig, name) as (url, broker, _):
        database_url = rig.database.create_database(name)
        await migrate(database_url, SCHEMA)
        await _fill(database_url)
        process = rig.start(
            ("-m", "services.mailings"),
            url,
            name,
            {
                "RINGBACK_DATABASE_URL": database_url,
                "RINGBACK_LOG_LEVEL": "WARNING",
                "RINGBACK_MAILINGS_MAX_WAITING": "1000000",
            },
        )
        client = RpcClient(url, name="bench", health=Health())
        running = create_task(client.run())
        try:
            received = await receiving(broker, CHANNELS["sms"].queues[BULK])
            await _create(client, ["few"])
            await until(received, FEW, process)
            memory_few = process.resident()
            received.count = 0
            begin = time.monotonic()
            await _create(client, ["vip", "few"])
            while not received.count:
                process.check()
                await sleep(0.005)
            first = time.monotonic() - begin
            seconds, cpu = await until(received, MANY, process)
            memory = process.resident()
        finally:
            running.cancel()
            process.signal(signal.SIGKILL)
            process.process.wait()
    rate = MANY / seconds
    rows = [
        Row("first message after", "s", first, target="at most 2", verdict=at_most(first, 2)),
        Row("messages", "/s", rate, target="at least 5,000", verdict=at_least(rate, 5000)),
        Row("CPU of the process per message", "µs", cpu / MANY * 1e6),
        Row("memory after 200,000 messages", "MB", memory),
        Row(
            "more than after 2,000",
            "MB",
            memory - memory_few,
            target="at most 30",
            verdict=at_most(memory - memory_few, 30),
        ),
    ]
    notes = [
        f"an SMS to {MANY:,} of {CLIENTS:,} clients with a tag: each rendered, its row stored",
        "and counted, published and confirmed; broker, database, consumer on two cores",
    ]
    return Section("q", "Expansion: a mailing to clients of the directory", "", rows, notes)


async def _fill(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(_FILL, CLIENTS, timeout=300)
    await connection.execute("VACUUM ANALYZE mailings.clients", timeout=300)
    await connection.close()


async def _create(client: RpcClient, tags: list[str]) -> None:
    """Create a mailing, once the service responds."""
    end_at = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    content = {"text": "Hello {{ user.phone }}", "end_at": end_at, "filter": {"tags": tags}}
    await client.ready()
    response = await client.request(
        CREATE_MAILING.queue,
        CREATE_MAILING.name,
        json.dumps({"mailing": content}).encode(),
        timeout=30.0,
    )
    if isinstance(response, Failure):
        raise TypeError(response.detail)
