"""Part k: messages per second and memory of one posting to 200,000 users."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from services.mailings.app import SCHEMA
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection, connect
from shared.amqp.declare import declare
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.amqp.subscription import ignore_delivery
from shared.contracts.postings import POSTING
from shared.postgres.migrations import migrate
from shared.registry import BULK, CHANNELS
from shared.topology import POSTING_KEY, POSTINGS, Topology, topology
from tests.bench.rig import Rig, Sender, running_publisher
from tests.bench.served import Port, served
from tests.bench.table import Row, Section, at_least, at_most

MANY: Final = 200_000
FEW: Final = 2_000
# Users for the hand-written program, which is slow.
BASELINE: Final = 10_000
PAGE: Final = 500
TEMPLATE: Final = "email/new_movies.md"


async def expansion(rig: Rig) -> Section:
    """Part k."""
    with served(serve_lists) as port:
        _, memory_few, _ = await _ours(rig, port, FEW)
        rate, memory, cpu = await _ours(rig, port, MANY)
        theirs, their_cpu = await _hand_written(rig, port)
    rows = [
        Row("messages", "/s", rate, theirs, rate / theirs, "at least 5,000", at_least(rate, 5000)),
        Row("CPU of the process per message", "µs", cpu * 1e6, their_cpu * 1e6, cpu / their_cpu),
        Row("memory after 200,000 receivers", "MB", memory),
        Row(
            "more than after 2,000",
            "MB",
            memory - memory_few,
            target="at most 30",
            verdict=at_most(memory - memory_few, 30),
        ),
    ]
    notes = [
        f"{MANY:,} receivers in pages of {PAGE}: each filtered, a new_movies e-mail rendered, its",
        "row stored, published and confirmed; source, broker, database, consumer on two cores",
        "hand-written: Jinja, Markdown, a publish with aio-pika for each; no rows, no checkpoints",
    ]
    return Section("k", "Expansion: one posting to many", "hand-written", rows, notes)


async def _ours(rig: Rig, port: int, receivers: int) -> tuple[float, float, float]:
    """Return messages per second, MB at the end, and seconds of CPU per message."""
    name = f"expansion_{receivers}"
    async with site(rig, name) as (url, broker, publisher):
        database_url = rig.database.create_database(name)
        await migrate(database_url, SCHEMA)
        process = rig.start(
            ("-m", "services.mailings"),
            url,
            name,
            {
                "RINGBACK_DATABASE_URL": database_url,
                "RINGBACK_LOG_LEVEL": "WARNING",
                "RINGBACK_SOURCES": f"auth=http://127.0.0.1:{port}",
            },
        )
        try:
            received = await receiving(broker)
            await publisher.publish_all([bulk_posting(receivers)])
            seconds, cpu = await until(received, receivers, process)
            memory = process.resident()
        finally:
            process.signal(signal.SIGKILL)
            process.process.wait()
    return receivers / seconds, memory, cpu / receivers


async def _hand_written(rig: Rig, port: int) -> tuple[float, float]:
    name = "expansion_by_hand"
    async with site(rig, name) as (url, broker, _):
        received = await receiving(broker)
        source_url = f"http://127.0.0.1:{port}"
        process = rig.start(("-m", f"tests.bench.{name}", source_url, str(BASELINE)), url, name)
        try:
            seconds, cpu = await until(received, BASELINE, process)
        finally:
            process.signal(signal.SIGKILL)
            process.process.wait()
    return BASELINE / seconds, cpu / BASELINE


async def until(received: "Received", receivers: int, process: Sender) -> tuple[float, float]:
    """Return the seconds and CPU seconds from the first message to the last."""
    while not received.count:
        process.check()
        await asyncio.sleep(0.005)
    begin, cpu = time.monotonic(), process.cpu()
    while received.count < receivers:
        process.check()
        await asyncio.sleep(0.02)
    return time.monotonic() - begin, process.cpu() - cpu


@asynccontextmanager
async def site(rig: Rig, name: str) -> AsyncIterator[tuple[str, BrokerConnection, Publisher]]:
    """Provide a virtual host with all queues, and a publisher."""
    url = rig.broker.add_vhost(name)
    try:
        async with (
            connect(url, name="bench") as broker,
            running_publisher(url, Topology((), (), ())) as publisher,
        ):
            await declare(broker.connection, topology())
            yield url, broker, publisher
    finally:
        rig.broker.delete_vhost(name)


class Received:
    """The number of messages received from the queue."""

    def __init__(self) -> None:
        self.count = 0


async def receiving(
    broker: BrokerConnection, queue: str = CHANNELS["email"].queues[BULK]
) -> Received:
    """Consume messages with as little work as possible."""
    received = Received()
    channel, intercepted = await broker.channel(confirms=False)

    def receive(_: Delivery) -> None:
        received.count += 1

    intercepted.on_delivery = receive
    await channel.basic_consume(queue, ignore_delivery, no_ack=True)
    return received


def bulk_posting(receivers: int) -> OutgoingMessage:
    """Make a posting of `new_movies` to so many users."""
    return posting(
        receivers=f"http://auth/users/{receivers}/?page_size={PAGE}",
        template=TEMPLATE,
        template_context={"movies": "http://auth/movies/"},
    )


def posting(**fields: object) -> OutgoingMessage:
    """Make a posting of e-mails."""
    body = {"from_event": "bench", "delivery_type": ["email"], **fields}
    properties = Properties(
        content_type="application/json",
        type=POSTING,
        message_id=new_id(),
        delivery_mode=PERSISTENT,
    )
    return OutgoingMessage(POSTING_KEY, properties, json.dumps(body).encode(), exchange=POSTINGS)


def user(number: int) -> dict[str, object]:
    """Make a user like those of the sandbox."""
    return {
        "id": f"5f0c1f6e-8d0e-4b57-9a3d-{number:012x}",
        "name": f"Anna Kim {number}",
        "email": f"anna.kim.{number}@example.com",
        "phone": f"7900{number:07d}",
        "timezone": "Europe/Moscow",
        "is_active": True,
        "email_notifications": True,
        "sms_notifications": False,
        "notifications": {"new_movies": True, "advertising": False},
    }


MOVIES: Final = [
    {
        "title": f"Movie {number}",
        "url": f"https://cinema.example.com/movies/{number}",
        "year": 2026,
        "genres": ["drama"],
        "imdb_rating": 7.5,
        "description": "A drama about what happens in between.",
    }
    for number in range(5)
]


async def serve_lists(port: Port) -> None:
    """Serve the user list. The pages are made once."""
    pages = [
        json.dumps([user(number) for number in range(start, start + PAGE)]).encode()
        for start in range(0, MANY, PAGE)
    ]

    async def users(request: web.Request) -> web.Response:
        number = int(request.query["page_number"])
        exists = (number - 1) * PAGE < int(request.match_info["count"])
        return web.Response(
            body=pages[number - 1] if exists else b"[]", content_type="application/json"
        )

    async def movies(_: web.Request) -> web.Response:
        return web.json_response(MOVIES)

    app = web.Application()
    app.router.add_get("/users/{count}/", users)
    app.router.add_get("/movies/", movies)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port.put(runner.addresses[0][1])
    await asyncio.get_running_loop().create_future()
