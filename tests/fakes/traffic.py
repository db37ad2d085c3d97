"""Steady traffic through all services, and a ledger: each accepted item must arrive."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.utils import parseaddr
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel
from aiohttp import web

from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.topology import WORK_QUEUES, dead_queue, topology
from tests.fakes.gateway import Caller
from tests.fakes.smtp import Script, mail_server
from tests.fakes.waiting import until

ITEMS = 3
INTERVAL = 0.1  # seconds
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Traffic:
    """Publishes items, each with its own name, and records what arrives at the outside world.

    A schedule, and a request over HTTP, arrive as webhooks. An event, a report (an event over HTTP)
    and a posting arrive as e-mails to a recipient of their own.
    """

    amqp_url: str
    channel: AbstractChannel
    base_url: str
    mails: Script
    gateway: Caller | None = None
    accepted: dict[str, float] = field(default_factory=dict)
    hooks: list[str] = field(default_factory=list)
    refused: int = 0
    _count: int = 0
    _parsed: int = 0
    _recipients: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        """Return the host and port of its users."""
        return self.base_url.partition("//")[2]

    @property
    def arrived(self) -> list[str]:
        """Return the names of the items that have arrived, with repeats."""
        for mail in self.mails.mails[self._parsed :]:
            _, address = parseaddr(str(message_from_bytes(mail)["To"]))
            self._recipients.append(address.partition("@")[0])
            self._parsed += 1
        return self.hooks + self._recipients

    @property
    def missing(self) -> set[str]:
        """Return the accepted items that have not arrived."""
        return self.accepted.keys() - set(self.arrived)

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings of services that reach the outside world of this traffic."""
        return {
            "RINGBACK_SOURCES": self.host,
            "RINGBACK_SMTP_URL": self.mails.url(),
        }

    async def flow(self) -> None:
        """Publish ITEMS of each kind in each INTERVAL, until cancelled."""
        while True:
            await asyncio.gather(*(self.publish() for _ in range(ITEMS)))
            await asyncio.sleep(INTERVAL)

    async def publish(self) -> None:
        """Publish an item of each kind, confirmed by the broker or by the gateway."""
        self._count += 1
        number = self._count
        publishes = [
            self._schedule(f"schedule-{number}"),
            self._event(f"event-{number}"),
            self._posting(f"posting-{number}"),
        ]
        if self.gateway:
            publishes += [
                self._request(self.gateway, f"request-{number}"),
                self._report(self.gateway, f"report-{number}"),
            ]
        await asyncio.gather(*publishes)

    def kinds_since(self, at: float) -> set[str]:
        """Return the kinds of which an item that was accepted after `at` has arrived."""
        arrived = set(self.arrived)
        return {
            name.partition("-")[0]
            for name, accepted_at in self.accepted.items()
            if accepted_at > at and name in arrived
        }

    async def complete(self, within: float) -> None:
        """Wait until every accepted item has arrived, and check that nothing is dead-lettered."""
        try:
            await until(lambda: not self.missing, within)
        except AssertionError:
            missing = sorted(self.missing)
            text = f"{len(missing)} of {len(self.accepted)} are lost: {missing[:10]}"
            raise AssertionError(f"{text}; dead letters: {await self.dead_letters()}") from None
        assert await self.dead_letters() == {}

    async def dead_letters(self) -> dict[str, str]:
        """Return the reason of the first dead letter in each queue that has some."""
        found = {}
        for name in (dead_queue(queue.name) for queue in WORK_QUEUES):
            queue = await self.channel.get_queue(name, ensure=False)
            if (letter := await queue.get(no_ack=True, fail=False)) is not None:
                found[name] = str(letter.headers.get("x-ringback-reason"))
        return found

    async def _schedule(self, name: str) -> None:
        body = {"url": f"{self.base_url}/hook/{name}", "delay": 1, "hmac_secret": SECRET}
        await self._publish("schedules", "schedule", "ScheduleCallback", body)
        self.accepted[name] = time.monotonic()

    def _signed_up(self, name: str) -> dict[str, Any]:
        details = {"username": name, "user": f"{self.base_url}/users/{name}"}
        return {"from_service": "auth", "event": "user_signed_up", "details": details}

    async def _event(self, name: str) -> None:
        await self._publish("events", "auth.user_signed_up", "Event", self._signed_up(name))
        self.accepted[name] = time.monotonic()

    async def _posting(self, name: str) -> None:
        body = {
            "receivers": f"{self.base_url}/users/{name}",
            "template": "email/email_confirmation.md",
            "delivery_type": ["email"],
            "template_context": {"confirmation_link": "https://example.com/abc"},
        }
        await self._publish("postings", "posting", "Posting", body)
        self.accepted[name] = time.monotonic()

    async def _request(self, gateway: Caller, name: str) -> None:
        body = {"url": f"{self.base_url}/hook/{name}", "delay": 1}
        self._responded(name, (await gateway("POST", "/v1/callbacks", body)).status == 201)

    async def _report(self, gateway: Caller, name: str) -> None:
        response = await gateway("POST", "/v1/events", self._signed_up(name))
        self._responded(name, response.status == 202)

    def _responded(self, name: str, accepted: bool) -> None:  # noqa: FBT001 - the response
        if accepted:
            self.accepted[name] = time.monotonic()
        else:
            self.refused += 1

    async def _publish(self, exchange: str, key: str, type_: str, body: Any) -> None:
        message = aio_pika.Message(
            json.dumps(body).encode(),
            content_type="application/json",
            type=type_,
            delivery_mode=2,
            message_id=uuid4().hex,
        )
        target = await self.channel.get_exchange(exchange, ensure=False)
        await target.publish(message, routing_key=key, timeout=30)


@asynccontextmanager
async def traffic(amqp_url: str) -> AsyncIterator[Traffic]:
    """Declare the topology, and serve users, a mail server and a receiver of webhooks."""
    async with connect(amqp_url, name="test") as broker:
        await declare(broker.connection, topology())
    app = web.Application()
    runner = web.AppRunner(app, access_log=None)

    async def user(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response(
            {
                "id": name,
                "email": f"{name}@example.com",
                "is_active": True,
                "email_notifications": True,
            }
        )

    async def hook(request: web.Request) -> web.Response:
        flowing.hooks.append(request.match_info["name"])
        return web.Response()

    app.add_routes([web.get("/users/{name}", user), web.post("/hook/{name}", hook)])
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    connection = await aio_pika.connect(amqp_url)
    try:
        async with mail_server() as mails, connection:
            channel = await connection.channel(on_return_raises=True)
            flowing = Traffic(amqp_url, channel, f"http://{host}:{port}", mails)
            yield flowing
    finally:
        await runner.cleanup()


@asynccontextmanager
async def flowing_traffic(traffic: Traffic) -> AsyncIterator[None]:
    """Publish items for the length of the block."""
    flow = asyncio.create_task(traffic.flow())
    try:
        yield
    finally:
        flow.cancel()
        (ended,) = await asyncio.gather(flow, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended
