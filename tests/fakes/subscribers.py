"""Users who read their events by polls, as a stream or at a callback, while services are killed."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import aiohttp
from aiohttp import web
from standardwebhooks import Webhook

from shared.contracts.polls import UserCursor, decode_user_cursor, encode_user_cursor
from tests.fakes.polling import PASSWORD, Stream
from tests.fakes.user_events import UserEventsClient
from tests.fakes.waiting import until

# Seconds after which a client repeats a request that failed.
RETRY_DELAY: Final = 0.2
# Registrations at a time. Each costs 0.1 s of CPU, and the service refuses more than it can do.
REGISTRATIONS: Final = 10
REFUSED: Final = 20
BROKEN: Final = (aiohttp.ClientError, ConnectionError, TimeoutError)


class Gateways:
    """An HTTP client of several gateways. It repeats requests that had no effect."""

    def __init__(self, urls: list[str], session: aiohttp.ClientSession) -> None:
        """`urls` may change at any time."""
        self.urls = urls
        self.session = session

    async def post(self, path: str, body: Any) -> Any:
        """Return the response; None if the effect is unknown."""
        while True:
            try:
                url = random.choice(self.urls)
                async with self.session.post(f"{url}{path}", json=body) as response:
                    text = await response.text()
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(RETRY_DELAY)
                continue
            except BROKEN:
                return None
            if response.status == 200:
                return json.loads(text)
            assert response.status in (503, 504), text
            if response.status == 504:
                return None
            await asyncio.sleep(RETRY_DELAY)

    async def repeat(self, path: str, body: Any) -> Any:
        """Return the response of a request that may be repeated."""
        while (response := await self.post(path, body)) is None:
            pass
        return response


@dataclass
class User:
    """A user, and the events they received: the text of each by sequence, and when it came.

    The order of `events` is that of arrival. `faults` are pushes that were not valid.
    """

    gateways: Gateways
    id: int
    token: str
    kind: str
    secret: str = ""
    events: dict[int, str] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)
    repeats: int = 0
    faults: list[Exception] = field(default_factory=list)

    @property
    def first_cursor(self) -> str:
        """Return the cursor before the first event."""
        return encode_user_cursor(UserCursor(self.id, 0))

    async def start(self, callbacks: str) -> None:
        """Register the callback of this user, if that is how they read."""
        if self.kind in ("callback", "ordered callback"):
            body = {"callback": f"{callbacks}/{self.id}", "ordered": self.kind.startswith("o")}
            body["token"] = self.token
            self.secret = (await self.gateways.repeat("/events/callback/start", body))["secret"]

    async def read(self) -> None:
        """Read events until cancelled, by polls or as a stream."""
        cursor = self.first_cursor
        while True:
            try:
                cursor = await (
                    self._stream(cursor) if self.kind == "stream" else self.poll(cursor)
                )
            except BROKEN:
                await asyncio.sleep(RETRY_DELAY)

    async def poll(self, cursor: str, timeout: float = 25) -> str:  # noqa: ASYNC109
        """Poll once, and return the next cursor."""
        body = {"token": self.token, "cursor": cursor, "limit": 100, "timeout": timeout}
        page = await self.gateways.repeat("/events/polling", body)
        for event in page["events"]:
            self._add(len(self.events) + 1, event)
        if page["events"]:
            assert decode_user_cursor(page["next_cursor"]).sequence == len(self.events)
        return str(page.get("next_cursor", cursor))

    async def _stream(self, cursor: str) -> str:
        """Read a stream to its end, and return the last cursor."""
        headers = {"Authorization": f"Bearer {self.token}", "Last-Event-ID": cursor}
        url = random.choice(self.gateways.urls)
        try:
            async with self.gateways.session.get(
                f"{url}/events/stream", headers=headers, timeout=aiohttp.ClientTimeout(total=None)
            ) as response:
                assert response.status in (200, 503, 504), await response.text()
                stream = Stream(response)
                while response.status == 200 and (event := await stream.next()) is not None:
                    cursor = event.id
                    self._add(decode_user_cursor(cursor).sequence, event.data)
                    assert max(self.events) == len(self.events), "a gap in the stream"
        except BROKEN:
            pass
        await asyncio.sleep(RETRY_DELAY)
        return cursor

    def receive(self, headers: Any, body: bytes) -> None:
        """Receive a push, which may be a repeat."""
        content = Webhook(self.secret).verify(body, dict(headers))
        sequence = int(headers["x-ringback-sequence"])
        if sequence in self.events:
            assert self.events[sequence] == content["event"]["text"]
            self.repeats += 1
            return
        self._add(sequence, content)

    def _add(self, sequence: int, content: Any) -> None:
        assert sequence not in self.events, f"event {sequence} was read twice"
        text = content["event"]["text"]
        self.events[sequence] = text
        self.at[text] = time.monotonic()

    def has(self, count: int) -> bool:
        """Return whether the events from 1 to `count` have arrived."""
        return self.events.keys() >= set(range(1, count + 1))

    async def everything(self) -> list[str]:
        """Return the texts of all stored events, read from the first on."""
        reader = User(self.gateways, self.id, self.token, "poll")
        cursor, after = "", self.first_cursor
        while cursor != after:
            cursor, after = after, await reader.poll(after, timeout=0)
        return [reader.events[sequence] for sequence in sorted(reader.events)]


async def sign_up(gateways: Gateways, kinds: Iterable[str]) -> list[User]:
    """Register and sign in users who read in these ways."""
    slots = asyncio.Semaphore(REGISTRATIONS)

    async def one(kind: str) -> User:
        async with slots:
            registered = None
            while registered is None:  # a name whose registration is unknown may be taken
                proof = {"name": uuid4().hex[:15], "password": PASSWORD}
                registered = await gateways.post("/users", proof)
            token = (await gateways.repeat("/users/login", proof))["token"]
        return User(gateways, registered["user_id"], token, kind)

    return await asyncio.gather(*map(one, kinds))


@asynccontextmanager
async def callback_server(find: Callable[[int], User]) -> AsyncIterator[str]:
    """Serve the callbacks of users, and yield their URL without the id of the user.

    One push in `REFUSED` is refused once, so that the next event can overtake it.
    """
    refused: set[str] = set()

    async def receive(request: web.Request) -> web.Response:
        user = find(int(request.match_info["id"]))
        webhook_id = request.headers["webhook-id"]
        number = int(request.headers["x-ringback-sequence"]) + user.id
        if number % REFUSED == 0 and webhook_id not in refused:
            refused.add(webhook_id)
            return web.Response(status=500)
        try:
            user.receive(request.headers, await request.read())
        except Exception as error:  # noqa: BLE001 - the test fails with it
            user.faults.append(error)
        return web.Response()

    app = web.Application()
    app.router.add_post("/{id}", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Traffic:
    """Sends each user one event a round, as a message over HTTP or as a user event over AMQP.

    certain: the texts of events that exist. possible: those whose effect is unknown.
    """

    def __init__(self, users: list[User], producer: UserEventsClient) -> None:
        self._users = users
        self._producer = producer
        self.rounds = 0
        self.certain: dict[int, set[str]] = {user.id: set() for user in users}
        self.possible: set[str] = set()
        self.sent_at: dict[str, float] = {}

    async def run(self, interval: float, ended: asyncio.Event) -> None:
        """Send rounds, `interval` seconds apart."""
        while not ended.is_set():
            senders = self._users[1:] + self._users[:1]
            await asyncio.gather(*map(self._send, senders, self._users))
            self.rounds += 1
            await asyncio.sleep(interval)

    async def pass_rounds(self, count: int) -> None:
        """Wait for so many more rounds."""
        last = self.rounds + count
        await until(lambda: self.rounds >= last)

    async def _send(self, sender: User, to: User) -> None:
        text = f"{to.id}-{self.rounds}"
        self.sent_at[text] = time.monotonic()
        if (to.id + self.rounds) % 2:
            await self._producer.publish(to.id, id=text, event={"text": text})
        else:
            body = {"token": sender.token, "to_id": to.id, "text": text}
            if await sender.gateways.post("/messages", body) is None:
                self.possible.add(text)
                return
        self.certain[to.id].add(text)
