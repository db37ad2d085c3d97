"""Postings to one recipient each: from the queue `postings` to the queue of the messages."""

import asyncio
import json
import signal
from typing import Final, cast

from services.mailings.app import SCHEMA
from shared.amqp.publisher import OutgoingMessage
from shared.postgres.migrations import migrate
from tests.bench.expansion import posting, receiving, site, until, user
from tests.bench.rig import Rig
from tests.bench.served import Port, served
from tests.bench.table import Row, Section, at_least

POSTINGS: Final = 6_000

_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


async def one_recipient(rig: Rig) -> Section:
    """Part l."""
    with served(serve_users) as port:
        rate, cpu = await _ours(rig, port)
    rows = [
        Row("messages", "/s", rate, target="at least 3,000", verdict=at_least(rate, 3000)),
        Row("CPU of the process per message", "µs", cpu * 1e6),
    ]
    notes = [
        f"{POSTINGS:,} welcome e-mails, each a posting of its own: stored, its user fetched,",
        "rendered, its row stored, published and confirmed; source, broker, database on two cores",
    ]
    return Section("l", "Expansion: postings to one recipient", "", rows, notes)


async def _ours(rig: Rig, port: int) -> tuple[float, float]:
    """Return messages per second, and seconds of CPU per message."""
    name = "one_recipient"
    async with site(rig, name) as (url, broker, publisher):
        database_url = rig.database.create_database(name)
        await migrate(database_url, SCHEMA)
        received = await receiving(broker)
        await publisher.publish_all(_posting(number) for number in range(POSTINGS))
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
            seconds, cpu = await until(received, POSTINGS, process)
        finally:
            process.signal(signal.SIGKILL)
            process.process.wait()
    return POSTINGS / seconds, cpu / POSTINGS


def _posting(number: int) -> OutgoingMessage:
    return posting(
        receivers=f"http://auth/users/?id={number:032x}",
        template="email/welcome.md",
        template_context={"username": f"anna.kim.{number}@example.com"},
    )


class _Directory(asyncio.Protocol):
    """Responds to every request with the user that it asks for, at the lowest cost."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            number = int(request.split(b" ", 2)[1].partition(b"id=")[2].partition(b"&")[0], 16)
            body = json.dumps(user(number)).encode()
            self._transport.write(_HEAD % len(body) + body)


async def serve_users(port: Port) -> None:
    """Serve single users."""
    server = await asyncio.get_running_loop().create_server(_Directory, "127.0.0.1", 0)
    port.put(server.sockets[0].getsockname()[1])
    await server.serve_forever()
