"""Part u: one message to 1,000 endpoints, by one process of subscriptions and one of callback."""

import asyncio
import base64
import json
import os
import signal
import time
from typing import Any, Final

import asyncpg

from services.subscriptions.app import SCHEMA
from services.subscriptions.deliveries.registrations import new_secret
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.amqp.rpc_client import RpcClient
from shared.contracts.endpoint_requests import SEND_ENDPOINT_MESSAGE
from shared.contracts.requests import Failure
from shared.ids import uuid7
from shared.postgres.migrations import migrate
from shared.process.health import Health
from shared.security.encryption import SecretCipher
from shared.topology import topology
from tests.bench.rig import DATA, POLL, Contender, Rig, Sender, Site, StalledError, median
from tests.bench.sink import Group
from tests.bench.table import Row, Section, at_least
from tests.bench.timing import TIMEOUT

ENDPOINTS: Final = 1_000
ROUNDS: Final = 7
# Messages at once, for the rate of a longer fan-out.
MESSAGES: Final = 20
_ADD: Final = """
INSERT INTO subscriptions.endpoints (id, client_id, event_types, url, secret)
VALUES ($1, '', '{*}', $2, $3)
"""


async def fan_out(rig: Rig) -> Section:
    """Part u."""
    key = base64.b64encode(os.urandom(32)).decode()
    database_url = rig.database.create_database("fan_out")
    await migrate(database_url, SCHEMA)
    database = await asyncpg.connect(database_url)
    await _add_endpoints(rig, database, SecretCipher.of(key))
    environment = {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_SECRETS_KEY": key,
        "RINGBACK_LOG_LEVEL": "WARNING",
    }
    async with rig.site(Contender.OURS, environment=environment) as site:
        async with connect(site.url, name="bench") as broker:
            await declare(broker.connection, topology())
        process = rig.start(("-m", "services.subscriptions"), site.url, "fan_out", environment)
        client = RpcClient(site.url, name="bench", health=Health())
        running = asyncio.create_task(client.run())
        try:
            await client.ready()
            await _send(client, site, process, 1)  # the first opens the connections
            single = [await _send(client, site, process, 1) for _ in range(ROUNDS)]
            cpu = process.cpu()
            many = await _send(client, site, process, MESSAGES)
            await _settled(database, process)
            cpu = process.cpu() - cpu
        finally:
            running.cancel()
            process.signal(signal.SIGKILL)
            process.process.wait()
            await database.close()
    rate, sustained = ENDPOINTS / median(single), MESSAGES * ENDPOINTS / many
    target = "at least 5,000"
    rows = [
        Row("one message", "/s", rate, target=target, verdict=at_least(rate, 5000)),
        Row(
            f"{MESSAGES} messages at once",
            "/s",
            sustained,
            target=target,
            verdict=at_least(sustained, 5000),
        ),
        Row("CPU of subscriptions per callback", "µs", cpu / (MESSAGES * ENDPOINTS) * 1e6),
    ]
    notes = [
        f"a message of 1 kB to {ENDPOINTS:,} endpoints, until the last response; {ROUNDS} rounds",
        "broker, database, receiver and both services share the cores",
    ]
    return Section("u", "Fan-out of messages to endpoints", "", rows, notes)


async def _add_endpoints(rig: Rig, database: Any, cipher: SecretCipher) -> None:
    urls = rig.sink.alternating((Group.HEALTHY,))
    await database.executemany(
        _ADD,
        [
            (
                uuid7(),
                cipher.encrypt(urls[number % len(urls)].encode()),
                cipher.encrypt(new_secret().encode()),
            )
            for number in range(ENDPOINTS)
        ],
    )
    await database.execute("VACUUM ANALYZE subscriptions.endpoints")


async def _send(client: RpcClient, site: Site, process: Sender, messages: int) -> float:
    """Send messages, and return the seconds until all endpoints have responded."""
    before = site.counters.responses[Group.HEALTHY]
    begin = time.monotonic()
    await asyncio.gather(*(_request(client, next(site.numbers)) for _ in range(messages)))
    while site.counters.responses[Group.HEALTHY] < before + messages * ENDPOINTS:
        process.check()
        if time.monotonic() - begin > TIMEOUT:
            raise StalledError("the message did not reach all endpoints in time")
        await asyncio.sleep(POLL)
    return time.monotonic() - begin


async def _request(client: RpcClient, number: int) -> None:
    body = {"message": {"event_type": "bench", "payload": {"data": DATA, "id": number}}}
    response = await client.request(
        SEND_ENDPOINT_MESSAGE.queue,
        SEND_ENDPOINT_MESSAGE.name,
        json.dumps(body).encode(),
        timeout=TIMEOUT,
    )
    if isinstance(response, Failure):
        raise StalledError(response.detail)


async def _settled(database: Any, process: Sender) -> None:
    """Wait until all deliveries are settled."""
    begin = time.monotonic()
    unfinished = "SELECT EXISTS (SELECT FROM subscriptions.deliveries WHERE finished_at IS NULL)"
    while await database.fetchval(unfinished):
        process.check()
        if time.monotonic() - begin > TIMEOUT:
            raise StalledError("the deliveries were not settled in time")
        await asyncio.sleep(0.1)
