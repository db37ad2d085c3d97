"""Part s: statistics of mailings over RPC, and facts settled, by one process of mailings."""

import json
import signal
import time
from asyncio import create_task, sleep
from typing import Any, Final
from uuid import UUID

import asyncpg

from services.mailings.app import SCHEMA
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.amqp.rpc_client import RpcClient
from shared.contracts.facts import FACTS
from shared.contracts.mailing_statistics import GET_STATISTICS
from shared.contracts.requests import Failure
from shared.postgres.migrations import migrate
from shared.process.health import Health
from shared.topology import MAILINGS_OUTCOMES
from tests.bench.expansion import site
from tests.bench.rig import Rig, StalledError, median
from tests.bench.table import Row, Section, at_least, at_most
from tests.bench.timing import TIMEOUT

MAILINGS: Final = 1_000
ZONES: Final = 10
MESSAGES: Final = 1_000_000
REQUESTS: Final = 21
FACTS_SENT: Final = 100_000
# Facts in one AMQP message of delivery, at most.
BATCH: Final = 500

_FILL_MAILINGS: Final = """
INSERT INTO mailings.mailings (id, client_id, fingerprint, channel, text, template_context,
    start_at, end_at, operator_codes, tags, status)
SELECT gen_random_uuid(), '', '', 'sms', 'Hi', '{}', now(), now() + interval '1 day', '{}', '{}',
    'running'
FROM generate_series(1, $1::bigint) AS n
"""
_FILL_POSTINGS: Final = """
INSERT INTO mailings.postings (id, client_id, mailing_id, priority, failed, ended, ended_at)
SELECT gen_random_uuid(), '', id, 'bulk', $2, 'expanded', now()
FROM mailings.mailings, generate_series(1, $1::bigint)
"""
# One more posting of a mailing, whose messages are not settled yet.
_FILL_POSTING: Final = """
INSERT INTO mailings.postings (id, client_id, mailing_id, priority, created, ended, ended_at)
SELECT $1, '', min(id::text)::uuid, 'bulk', $2, 'expanded', now() FROM mailings.mailings
"""
_FILL_MESSAGES: Final = """
INSERT INTO mailings.messages (posting_id, id, user_id, operator_code, channel, status, page)
SELECT $1, lpad(n::text, 32, '0')::uuid, 'client', 900 + n % 60, 'sms', 'created', 0
FROM generate_series(0, $2::bigint - 1) AS n
"""
_POSTING: Final = UUID(int=1)


async def statistics(rig: Rig) -> Section:
    """Part s."""
    name = "statistics"
    async with site(rig, name) as (url, _, publisher):
        database_url = rig.database.create_database(name)
        await migrate(database_url, SCHEMA)
        database = await asyncpg.connect(database_url)
        await _fill(database)
        environment = {"RINGBACK_DATABASE_URL": database_url, "RINGBACK_LOG_LEVEL": "WARNING"}
        process = rig.start(("-m", "services.mailings"), url, name, environment)
        client = RpcClient(url, name="bench", health=Health())
        running = create_task(client.run())
        try:
            await client.ready()
            times = [await _overall(client) for _ in range(REQUESTS)]
            cpu, begin = process.cpu(), time.monotonic()
            await _publish(publisher)
            while (await _sent(client)) < FACTS_SENT:
                process.check()
                if time.monotonic() - begin > TIMEOUT:
                    raise StalledError("the facts were not settled in time")
                await sleep(0.25)
            seconds = time.monotonic() - begin
            cpu = process.cpu() - cpu
        finally:
            running.cancel()
            process.signal(signal.SIGKILL)
            process.process.wait()
            await database.close()
    milliseconds = median(times) * 1000
    rate = FACTS_SENT / seconds
    rows = [
        Row(
            "all statistics of 1,000 mailings",
            "ms",
            milliseconds,
            target="at most 50",
            verdict=at_most(milliseconds, 50),
        ),
        Row("facts settled", "/s", rate, target="at least 5,000", verdict=at_least(rate, 5000)),
        Row("CPU of the process per fact", "µs", cpu / FACTS_SENT * 1e6),
    ]
    notes = [
        f"{MESSAGES:,} messages in {ZONES} time zones for each mailing; requests over RPC, median",
        f"facts in batches of {BATCH} about {FACTS_SENT:,} messages of one mailing",
    ]
    return Section("s", "Statistics and settlement of mailings", "", rows, notes)


async def _fill(database: Any) -> None:
    await database.execute(_FILL_MAILINGS, MAILINGS)
    settled = MESSAGES - FACTS_SENT
    await database.execute(_FILL_POSTINGS, ZONES, settled // (MAILINGS * ZONES))
    await database.execute(_FILL_POSTING, _POSTING, FACTS_SENT)
    await database.execute(_FILL_MESSAGES, _POSTING, FACTS_SENT, timeout=300)
    await database.execute(
        "VACUUM ANALYZE mailings.postings, mailings.messages, mailings.statistics", timeout=300
    )


async def _overall(client: RpcClient) -> float:
    """Return the seconds for a request for all statistics."""
    begin = time.monotonic()
    if (total := (await _counts(client))["total"]) != MESSAGES:
        raise StalledError(f"{total} messages are counted")
    return time.monotonic() - begin


async def _sent(client: RpcClient) -> int:
    return int((await _counts(client))["by_status"]["sent"])


async def _counts(client: RpcClient) -> Any:
    """Request all statistics, once the service responds."""
    queue, name = GET_STATISTICS.queue, GET_STATISTICS.name
    response = await client.request(queue, name, b"{}", timeout=TIMEOUT)
    if isinstance(response, Failure):
        raise StalledError(response.detail)
    return response


async def _publish(publisher: Publisher) -> None:
    """Publish facts to the queue of mailings."""
    for start in range(0, FACTS_SENT, BATCH):
        facts = [_fact(number) for number in range(start, start + BATCH)]
        properties = Properties(
            content_type="application/json",
            type=FACTS,
            message_id=new_id(),
            delivery_mode=PERSISTENT,
        )
        body = json.dumps({"facts": facts}).encode()
        await publisher.publish(OutgoingMessage(MAILINGS_OUTCOMES, properties, body))


def _fact(number: int) -> dict[str, object]:
    return {
        "type": "message.sent",
        "fact_id": new_id(),
        "at": "2026-11-20T15:00:00Z",
        "message_id": str(UUID(f"{number:032}")),
        "posting_id": str(_POSTING),
        "channel": "sms",
        "attempt": 1,
        "duration": 0.1,
    }
