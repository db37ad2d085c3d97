"""`python -m tests.bench.ingest`: events a second that one ingestion process takes in.

Every event is checked, its rule applied, its key and posting committed, and its posting published
with a confirm. One in ten is a duplicate. Broker and database, durable, share the machine's cores.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import click
import uvloop
from aiormq.abc import AbstractChannel

from deploy.local.broker import Broker
from deploy.local.daemon import CHECKOUT
from deploy.local.database import Database
from deploy.local.watchdog import throwaway
from services.ingestion.app import SCHEMA
from shared.amqp.codec import Properties
from shared.amqp.connection import opened
from shared.amqp.declare import declare
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import Outgoing, Publisher, fresh_id
from shared.contracts.events import EVENT
from shared.postgres.migrations import migrate
from shared.process.health import Health
from shared.topology import EVENTS, POSTINGS, topology
from tests.bench.rig import Sender

AT_ONCE = 1000
DUPLICATE_EVERY = 10


@click.command()
@click.option("--events", default=60_000, show_default=True)
def main(events: int) -> None:
    """Measure how fast one process of ingestion is."""
    with throwaway("bench") as directory:
        broker = Broker(directory / "broker")
        database = Database(directory / "database")
        broker.start()
        database.start()
        try:
            click.echo(uvloop.run(_measure(broker.add_vhost("bench"), database.url, events)))
        finally:
            broker.kill()
            database.stop(immediate=True)


async def _measure(amqp_url: str, database_url: str, events: int) -> str:
    await migrate(database_url, SCHEMA)
    tables = topology()
    publisher = Publisher(amqp_url, name="bench", topology=tables, health=Health())
    keeping = asyncio.create_task(publisher.run())
    await publisher.ready()
    for start in range(0, events, AT_ONCE):
        await publisher.publish_all(_event(start + number) for number in range(AT_ONCE))
    wanted = sum(1 for number in range(events) if not _repeats(number))
    async with opened(amqp_url, name="bench") as link:
        await declare(link.connection, tables)
        channel = await link.connection.channel(publisher_confirms=False)
        with subprocess.Popen(  # noqa: ASYNC220 - a millisecond, before anything is measured
            [sys.executable, "-m", "services.ingestion"],
            cwd=CHECKOUT,
            env={
                "PATH": os.environ["PATH"],
                "RINGBACK_AMQP_URL": amqp_url,
                "RINGBACK_DATABASE_URL": database_url,
                "RINGBACK_METRICS_PORT": "0",
                "RINGBACK_LOG_LEVEL": "WARNING",
            },
        ) as process:
            sender = Sender(process, CHECKOUT / "none")
            try:
                while not await _length(channel):  # noqa: ASYNC110 - the broker gives no signal
                    await asyncio.sleep(0.005)
                first, begin, cpu = await _length(channel), time.monotonic(), sender.cpu()
                while (last := await _length(channel)) < wanted:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.02)
                seconds, cpu = time.monotonic() - begin, sender.cpu() - cpu
            finally:
                process.send_signal(signal.SIGKILL)
    keeping.cancel()
    done = (last - first) * events / wanted
    return (
        f"{events} events, {wanted} different: {done / seconds:,.0f} events/s,"
        f" {cpu / done * 1e6:.0f} µs of the process's CPU an event, load {os.getloadavg()[0]:.1f}"
    )


async def _length(channel: AbstractChannel) -> int:
    return (await channel.queue_declare(POSTINGS, passive=True)).message_count or 0


def _repeats(number: int) -> bool:
    return number % DUPLICATE_EVERY == DUPLICATE_EVERY - 1


def _event(number: int) -> Outgoing:
    body = {
        "from_service": "auth",
        "event": "user_signed_up",
        "details": {"username": f"user{number}@mail.com", "user": "https://auth/api/v1/users/7/"},
        "event_id": f"event-{number - _repeats(number)}",
    }
    properties = Properties(
        content_type="application/json",
        type=EVENT,
        message_id=fresh_id(),
        delivery_mode=PERSISTENT,
        timestamp=int(time.time()),
    )
    key = f"{body['from_service']}.{body['event']}"
    return Outgoing(key, properties, json.dumps(body).encode(), exchange=EVENTS)


if __name__ == "__main__":
    main()
