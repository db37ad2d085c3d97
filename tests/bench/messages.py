"""Part j: e-mails per second of one delivery process, also while the SMS gateway hangs.

The sandbox's mail server accepts them. It shares the cores with the broker and the senders.
"""

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import aiohttp

from services.delivery.app import SCHEMA
from shared.amqp.codec import Properties
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.postgres.migrations import migrate
from shared.registry import BULK, CHANNELS, Channel
from shared.topology import topology
from tests.bench.rig import Rig, Sender, StalledError, median, running_publisher
from tests.bench.table import Row, Section, at_least

OURS: Final = ("-m", "services.delivery")
HAND_WRITTEN: Final = ("-m", "tests.bench.mail_baseline")
EMAILS: Final[Mapping[tuple[str, ...], int]] = {OURS: 12_000, HAND_WRITTEN: 2000}
BACKLOG: Final = 5000
WARM_UP: Final = 500  # mails before the measurement
AT_ONCE: Final = 500
ROUNDS: Final = 3
POLL: Final = 0.02
WANTED_RATE: Final = 1000.0
# Allowed share with a hanging gateway: the spread between two equal runs.
WANTED_SHARE: Final = 0.9
TEXT: Final = "A new movie is waiting for you.\n" * 15
HTML: Final = "<p>A new <b>movie</b> is waiting for you.</p>\n" * 20


@dataclass(slots=True)
class SandboxClient:
    """A client of the running sandbox."""

    http: aiohttp.ClientSession
    environment: Mapping[str, str]

    async def accepted(self) -> int:
        """Return the number of accepted e-mails."""
        async with self.http.get("/api/mails/settings") as response:
            return int((await response.json())["accepted"])

    async def received(self, to: str) -> None:
        """Wait until an e-mail to this address is accepted."""
        query: dict[str, str | int] = {"to": to, "timeout": 60, "limit": 1}
        async with self.http.get("/api/mails/wait", params=query) as response:
            if not (await response.json())["complete"]:
                raise StalledError(f"no e-mail to {to} within 60 s")

    async def clear(self) -> None:
        """Delete all messages."""
        await self.http.delete("/api/mails")
        await self.http.delete("/api/sms")

    async def sms(self, **settings: Any) -> None:
        """Change the settings of the SMS gateway."""
        async with self.http.put("/api/sms/settings", json=settings) as response:
            response.raise_for_status()


async def delivery(rig: Rig) -> Section:
    """Part j."""
    numbers = count()
    database = rig.database.create_database("delivery")
    await migrate(database, SCHEMA)
    async with running_sandbox(rig, database) as sandbox:
        rates: dict[str, list[tuple[float, float]]] = {"ours": [], "hand": [], "hang": []}
        for _ in range(ROUNDS):
            for name, argv, backlog in (
                ("hand", HAND_WRITTEN, 0),
                ("ours", OURS, 0),
                ("hang", OURS, BACKLOG),
            ):
                site = f"messages{next(numbers)}"
                rates[name].append(await _round(rig, sandbox, site, argv, backlog))
    rate = {name: median([each for each, _ in found]) for name, found in rates.items()}
    cpu = {name: median([each for _, each in found]) for name, found in rates.items()}
    ratio = rate["ours"] / rate["hand"]
    # By round, because the load of the machine changes between rounds.
    share = median([h / o for (h, _), (o, _) in zip(rates["hang"], rates["ours"], strict=True)])
    rows = [
        Row(
            "e-mails",
            "/s",
            rate["ours"],
            rate["hand"],
            ratio,
            f"at least {WANTED_RATE:,.0f}",
            at_least(rate["ours"], WANTED_RATE),
        ),
        Row("CPU for an e-mail", "µs", cpu["ours"], cpu["hand"], cpu["ours"] / cpu["hand"]),
        Row(
            "e-mails while the SMS gateway hangs",
            "/s",
            rate["hang"],
            rate["ours"],
            share,
            f"at least {WANTED_SHARE} of those without",
            at_least(share, WANTED_SHARE),
        ),
        Row(
            "CPU for an e-mail while it hangs",
            "µs",
            cpu["hang"],
            cpu["ours"],
            cpu["hang"] / cpu["ours"],
        ),
    ]
    notes = [
        f"{EMAILS[OURS]:,} e-mails of {len(TEXT) + len(HTML):,} bytes, as text and HTML, over 20",
        f"reused connections; the gateway hangs on {BACKLOG:,} SMS, against none",
    ]
    return Section("j", "Delivery: e-mails sent by one process", "hand-written", rows, notes)


async def _round(
    rig: Rig, sandbox: SandboxClient, site: str, argv: tuple[str, ...], backlog: int
) -> tuple[float, float]:
    """Return e-mails per second and µs of CPU for each, after the warm-up."""
    url = rig.broker.add_vhost(site)
    await sandbox.clear()
    await sandbox.sms(**({"behaviour": {"kind": "hang"}} if backlog else {}))
    await fill(url, backlog, EMAILS[argv])
    process = rig.start(argv, url, site, sandbox.environment)
    try:
        await until(sandbox, process, WARM_UP)
        first, begin, cpu = await sandbox.accepted(), time.monotonic(), process.cpu()
        last = await until(sandbox, process, EMAILS[argv])
        seconds, cpu = time.monotonic() - begin, process.cpu() - cpu
    finally:
        process.signal(signal.SIGKILL)
        process.process.wait()
        rig.broker.delete_vhost(site)
    return (last - first) / seconds, cpu / (last - first) * 1e6


async def until(sandbox: SandboxClient, process: Sender, target: int) -> int:
    """Wait until so many e-mails are accepted; return their number."""
    while (done := await sandbox.accepted()) < target:
        process.check()
        await asyncio.sleep(POLL)
    return done


async def fill(url: str, backlog: int, emails: int) -> None:
    """Declare all queues, and publish so many SMS and bulk e-mails."""
    tables = topology()
    async with connect(url, name="bench") as broker:
        await declare(broker.connection, tables)
    async with running_publisher(url, tables) as publisher:
        for total, make in ((backlog, _sms), (emails, _email)):
            for start in range(0, total, AT_ONCE):
                numbers = range(start, start + AT_ONCE)
                await publisher.publish_all(make(number) for number in numbers)


def _email(number: int) -> OutgoingMessage:
    body = {
        "id": new_id(),
        "to": f"user{number}@example.org",
        "subject": "New movies this week",
        "text": TEXT,
        "html": HTML,
        "unsubscribe_url": f"https://shop.example.com/unsubscribe/{number}",
        "posting_id": "posting-1",
        "user_id": f"user-{number}",
    }
    return _outgoing(CHANNELS["email"], body)


def _sms(number: int) -> OutgoingMessage:
    body = {"id": new_id(), "phone": f"79{number:09}", "text": "Your code is 1234"}
    return _outgoing(CHANNELS["sms"], body)


def _outgoing(channel: Channel, body: Mapping[str, str]) -> OutgoingMessage:
    properties = Properties(
        content_type="application/json",
        type=channel.type,
        message_id=new_id(),
        delivery_mode=PERSISTENT,
    )
    return OutgoingMessage(channel.queues[BULK], properties, json.dumps(body).encode())


@asynccontextmanager
async def running_sandbox(rig: Rig, database: str) -> AsyncIterator[SandboxClient]:
    """Run the sandbox. `environment` of the client configures delivery."""
    port, smtp_port = _free_ports()
    url = f"http://127.0.0.1:{port}"
    settings = {"RINGBACK_SANDBOX_PORT": str(port), "RINGBACK_SANDBOX_SMTP_PORT": str(smtp_port)}
    process = rig.start(
        ("-m", "services.sandbox"),
        rig.broker.url,
        "sandbox",
        settings | {"RINGBACK_LOG_LEVEL": "ERROR"},
    )
    environment = {
        "RINGBACK_DATABASE_URL": database,
        "RINGBACK_SMTP_URL": f"smtp://127.0.0.1:{smtp_port}",
        "RINGBACK_MAIL_FROM": "Shop <news@shop.example.com>",
        "RINGBACK_SMS_URL": f"{url}/sms",
        "RINGBACK_SMS_KEY": "the-key-of-the-sandbox-sms-gateway",
    }
    try:
        async with aiohttp.ClientSession(url) as http:
            sandbox = SandboxClient(http, environment)
            while True:
                process.check()
                try:
                    await sandbox.clear()
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(POLL)
            yield sandbox
    finally:
        process.signal(signal.SIGKILL)
        process.process.wait()


def _free_ports() -> Iterator[int]:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        return iter((one.getsockname()[1], two.getsockname()[1]))
