"""A steady load of callbacks, schedules, events and postings, and a ledger of every message."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count, pairwise
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web

from services.sandbox.users import Directory
from shared.amqp.codec import Properties
from shared.amqp.publisher import (
    OutgoingMessage,
    Publisher,
    PublishRefusedError,
    PublishUnknownError,
    new_id,
)
from shared.process.health import Health
from shared.topology import Topology
from tests.fakes.mailing import is_enabled
from tests.fakes.sandbox import Sandbox
from tests.fakes.waiting import until

# Messages a second of each kind.
RATES = {"callback": 10.0, "schedule": 5.0, "event": 1.0, "posting": 1.0}
# Seconds from the creation of a scheduled callback to its due time.
DELAY = 3
# A client repeats a message whose result is not known, as the documentation asks it to.
CLIENT_RETRY_DELAY = 0.5
CLIENT_TIMEOUT = aiohttp.ClientTimeout(total=15)
# Tolerance for the clocks of PostgreSQL and Python, in seconds.
EARLY = 0.05


@dataclass(frozen=True, slots=True)
class Sent:
    """An accepted message. `due` is a Unix time; `unsure` if its client had to repeat it."""

    kind: str
    due: float
    unsure: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What happened to the messages of one window of time. Durations are in seconds."""

    sent: int
    lost: list[str]
    repeated: int
    early: int
    latest: float  # the longest time from acceptance, or the due time, to the arrival
    interruption: float  # the longest time without any arrival of a callback

    def __str__(self) -> str:
        return (
            f"| {self.sent} | {len(self.lost)} | {self.repeated} | {self.early}"
            f" | {self.latest:.1f} s | {self.interruption:.1f} s |"
        )


@dataclass(slots=True)
class Ledger:
    """Every message by its id: when it was due, and when it arrived."""

    sent: dict[str, Sent] = field(default_factory=dict)
    arrivals: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def accept(self, message: str, kind: str, *, due: float, unsure: bool) -> None:
        self.sent[message] = Sent(kind, due, unsure)

    def missing(self) -> list[str]:
        """Return the accepted messages that have not arrived."""
        return [message for message in self.sent if message not in self.arrivals]

    def result(self, since: float) -> Result:
        """Return what happened to the messages that were due since then."""
        window = {m: sent for m, sent in self.sent.items() if sent.due >= since}
        arrived = {m: self.arrivals[m] for m in window if m in self.arrivals}
        callbacks = sorted(
            times[0] for m, times in arrived.items() if window[m].kind in ("callback", "schedule")
        )
        return Result(
            sent=len(window),
            lost=[m for m in window if m not in arrived],
            repeated=sum(len(t) - 1 for m, t in arrived.items() if not window[m].unsure),
            early=sum(
                times[0] < window[m].due - EARLY
                for m, times in arrived.items()
                if window[m].kind == "schedule"
            ),
            latest=max((times[0] - window[m].due for m, times in arrived.items()), default=0.0),
            interruption=max((b - a for a, b in pairwise(callbacks)), default=0.0),
        )


class SteadyLoad:
    """Sends messages until `stop`, to the broker and to several gateways."""

    def __init__(
        self, publisher: Publisher, gateways: Sequence[str], sandbox: Sandbox, hook: str
    ) -> None:
        self.ledger = Ledger()
        self._publisher = publisher
        self._gateways = gateways
        self._sandbox = sandbox
        self._hook = hook
        numbers = range(100)
        user = next(n for n in numbers if is_enabled(Directory(100).user(n)))
        self._user = f"http://auth/api/v1/users/?id={Directory(100).user(user)['id']}"
        self._session = aiohttp.ClientSession(timeout=CLIENT_TIMEOUT)
        self._clients: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.Task[None]] = []

    def start(self, kinds: Sequence[str]) -> None:
        """Send messages at a constant rate, however long each takes."""
        send: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
            "callback": self._callback,
            "schedule": self._schedule,
            "event": self._event,
            "posting": self._posting,
        }
        self._timers = [
            asyncio.create_task(self._repeat(send[kind], 1 / RATES[kind])) for kind in kinds
        ]

    async def stop(self) -> None:
        """Stop, and wait until every message is accepted."""
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)
        await asyncio.gather(*self._clients)

    async def close(self) -> None:
        for task in (*self._timers, *self._clients):
            task.cancel()
        await asyncio.gather(*self._timers, *self._clients, return_exceptions=True)
        await self._session.close()

    async def arrived(self, within: float) -> None:
        """Wait until everything that was accepted has arrived; the ledger has the rest."""
        ledger = self.ledger

        async def complete() -> bool:
            # What was accepted meanwhile is awaited as well.
            await self._read_messages()
            return not ledger.missing()

        try:
            await until(complete, within)
        except AssertionError:
            return

    async def _read_messages(self) -> None:
        """Record the e-mails and SMS in the sandbox. Their texts contain the id."""
        for path in ("/api/mails", "/api/sms"):
            times: dict[str, list[float]] = defaultdict(list)
            for item in (await self._sandbox.get(path, limit=1000, accepted="true"))["items"]:
                words = item["text"].replace("*", " ").replace(".", " ").split()
                message = next(word for word in words if word.startswith("load-"))
                times[message].append(datetime.fromisoformat(item["received_at"]).timestamp())
            for message, received in times.items():
                self.ledger.arrivals[message] = sorted(received)

    async def _repeat(self, send: Callable[[str], Coroutine[Any, Any, None]], every: float) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        for number in count(1):
            task = loop.create_task(send(f"load-{uuid4().hex}"))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)
            await asyncio.sleep(max(started + number * every - loop.time(), 0))

    async def _callback(self, message: str) -> None:
        body = {"id": message, "target_url": self._hook, "target_method": "POST"}
        body |= {"hmac_secret": "your-secret-key", "payload": {"any": "json"}}  # type: ignore[dict-item]
        unsure = False
        while True:
            properties = Properties(
                content_type="application/json",
                type="SendCallback",
                delivery_mode=2,
                message_id=new_id(),
            )
            outgoing = OutgoingMessage("callbacks", properties, json.dumps(body).encode())
            try:
                await self._publisher.publish(outgoing)
            except PublishUnknownError:
                unsure = True
            except PublishRefusedError:
                pass
            else:
                self.ledger.accept(message, "callback", due=time.time(), unsure=unsure)
                return
            await asyncio.sleep(CLIENT_RETRY_DELAY)

    async def _schedule(self, message: str) -> None:
        body = {"url": self._hook, "delay": DELAY, "hmac_secret": "your-secret-key"}
        created, unsure = await self._post("/v1/callbacks", body, message)
        due = datetime.fromisoformat(created["run_at"]).timestamp()
        self.ledger.accept(created["id"], "schedule", due=due, unsure=unsure)

    async def _event(self, message: str) -> None:
        details = {"user": self._user, "username": message}
        body = {"from_service": "auth", "event": "user_signed_up", "event_id": message}
        _, unsure = await self._post("/v1/events", body | {"details": details}, message)
        self.ledger.accept(message, "event", due=time.time(), unsure=unsure)

    async def _posting(self, message: str) -> None:
        body = {
            "from_event": message,
            "receivers": self._user,
            "template": "sms/phone_confirmation.md",
            "delivery_type": ["sms"],
            "expires_in": "1 day",
            "template_context": {"secret_code": message},
        }
        _, unsure = await self._post("/v1/postings", body, message)
        self.ledger.accept(message, "posting", due=time.time(), unsure=unsure)

    async def _post(self, path: str, body: Any, key: str) -> tuple[Any, bool]:
        """Post until a gateway accepts; return its response, and whether it was repeated."""
        for attempt in count():
            base = self._gateways[(hash(key) + attempt) % len(self._gateways)]
            headers = {"Idempotency-Key": key}
            try:
                async with self._session.post(base + path, json=body, headers=headers) as response:
                    if response.status < 300:
                        return await response.json(), attempt > 0
                    assert response.status in (503, 504), await response.text()
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(CLIENT_RETRY_DELAY)
        raise AssertionError


@asynccontextmanager
async def recording_receiver(arrivals: Callable[[str], None]) -> AsyncIterator[str]:
    """Run a receiver of webhooks, and call `arrivals` with the id of each."""

    async def receive(request: web.Request) -> web.Response:
        await request.read()
        arrivals(request.headers["webhook-id"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def steady_load(
    amqp_url: str, gateways: Sequence[str], sandbox: Sandbox, *kinds: str
) -> AsyncIterator[SteadyLoad]:
    """Yield a load of these kinds that has started. The queues must exist."""
    nothing = Topology((), (), ())
    publisher = Publisher(amqp_url, name="load", topology=nothing, health=Health())
    running = asyncio.create_task(publisher.run())
    async with AsyncExitStack() as stack:
        stack.callback(running.cancel)
        await asyncio.wait_for(publisher.ready(), 30)
        arrivals: Callable[[str], None] = lambda m: load.ledger.arrivals[m].append(time.time())  # noqa: E731
        hook = await stack.enter_async_context(recording_receiver(arrivals))
        load = SteadyLoad(publisher, gateways, sandbox, hook)
        stack.push_async_callback(load.close)
        load.start(kinds)
        yield load
