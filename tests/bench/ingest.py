"""Part i: events that one ingestion process handles per second."""

import asyncio
import json
import signal
import time
from typing import Final

from aiormq.abc import AbstractChannel

from services.ingestion.app import SCHEMA
from shared.amqp.codec import Properties
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.contracts.events import EVENT
from shared.postgres.migrations import migrate
from shared.topology import EVENTS, POSTINGS, topology
from tests.bench.rig import Rig, running_publisher
from tests.bench.table import Row, Section, at_least

COUNT: Final = 40_000
BATCH: Final = 1000
DUPLICATE_INTERVAL: Final = 10


async def ingestion(rig: Rig) -> Section:
    """Part i."""
    url = rig.broker.add_vhost("ingestion")
    database_url = rig.database.create_database("ingestion")
    await migrate(database_url, SCHEMA)
    tables = topology()
    async with running_publisher(url, tables) as publisher:
        for start in range(0, COUNT, BATCH):
            await publisher.publish_all(_event(start + number) for number in range(BATCH))
    expected = sum(1 for number in range(COUNT) if not _is_duplicate(number))
    async with connect(url, name="bench") as broker:
        await declare(broker.connection, tables)
        channel = await broker.connection.channel(publisher_confirms=False)
        process = rig.start(
            ("-m", "services.ingestion"),
            url,
            "ingestion",
            {"RINGBACK_DATABASE_URL": database_url, "RINGBACK_LOG_LEVEL": "WARNING"},
        )
        try:
            while not await _length(channel):
                process.check()
                await asyncio.sleep(0.005)
            first, begin, cpu = await _length(channel), time.monotonic(), process.cpu()
            while (last := await _length(channel)) < expected:
                process.check()
                await asyncio.sleep(0.02)
            seconds, cpu = time.monotonic() - begin, process.cpu() - cpu
        finally:
            process.signal(signal.SIGKILL)
            process.process.wait()
    done = (last - first) * COUNT / expected
    rate = done / seconds
    rows = [
        Row("events", "/s", rate, target="at least 3,000", verdict=at_least(rate, 3000)),
        Row("CPU of the process per event", "µs", cpu / done * 1e6),
    ]
    notes = [
        f"{COUNT:,} events, every tenth a duplicate. Each is validated and its rule applied, its",
        "posting committed and confirmed. Broker and database share the cores.",
    ]
    return Section("i", "Ingestion: events handled by one process", "", rows, notes)


async def _length(channel: AbstractChannel) -> int:
    return (await channel.queue_declare(POSTINGS, passive=True)).message_count or 0


def _is_duplicate(number: int) -> bool:
    return number % DUPLICATE_INTERVAL == DUPLICATE_INTERVAL - 1


def _event(number: int) -> OutgoingMessage:
    body = {
        "from_service": "auth",
        "event": "user_signed_up",
        "details": {"username": f"user{number}@mail.com", "user": "https://auth/api/v1/users/7/"},
        "event_id": f"event-{number - _is_duplicate(number)}",
    }
    properties = Properties(
        content_type="application/json",
        type=EVENT,
        message_id=new_id(),
        delivery_mode=PERSISTENT,
        timestamp=int(time.time()),
    )
    key = f"{body['from_service']}.{body['event']}"
    return OutgoingMessage(key, properties, json.dumps(body).encode(), exchange=EVENTS)
