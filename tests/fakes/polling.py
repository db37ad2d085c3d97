"""Users of a running messenger, who poll and stream over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import aiohttp

from tests.fakes.gateway import Caller, Response, base_url
from tests.fakes.service import Service
from tests.fakes.waiting import until

PASSWORD: Final = "correct horse"
# Sign-ups of a whole test file come from one address.
NO_LIMITS: Final = {
    f"RINGBACK_GATEWAY_{name}": "1000000"
    for name in (
        "REGISTRATIONS_PER_ADDRESS",
        "SIGN_INS_PER_ADDRESS",
        "SIGN_INS_PER_NAME",
        "MESSAGES_PER_USER",
        "MESSAGES_PER_ADDRESS",
        "CALLBACKS_PER_USER",
    )
}


@dataclass(frozen=True)
class Person:
    """A user who is signed in."""

    call: Caller
    name: str
    id: int
    token: str

    async def send(self, to: "Person", text: str = "hello") -> int:
        """Send a message, and return its id."""
        body = {"token": self.token, "to_id": to.id, "text": text}
        response = await self.call("POST", "/messages", body)
        assert response.status == 200, response.text
        id_: int = response.json["message_id"]
        return id_

    async def poll(self, **fields: Any) -> Response:
        """Poll once."""
        return await self.call("POST", "/events/polling", {"token": self.token, **fields})

    async def texts(self, **fields: Any) -> list[str]:
        """Poll once without waiting, and return the texts of these messages."""
        fields = {"timeout": 0, "limit": 1000, **fields}
        response = await self.poll(**fields)
        assert response.status == 200, response.text
        return [event["event"]["text"] for event in response.json["events"]]

    async def cursor(self) -> str:
        """Return the cursor behind all events so far."""
        response = await self.poll(timeout=0, limit=1000)
        cursor: str = response.json["next_cursor"]
        return cursor


def check(response: Response, status: int, code: int) -> None:
    """Check that a response is an error of the messenger with this status and code."""
    assert (response.status, response.json["code"]) == (status, code), response.text
    assert response.json.keys() == {"code", "description"}


async def person(call: Caller) -> Person:
    """Register a user, and sign in."""
    name = uuid4().hex[:12]
    created = await call("POST", "/users", {"name": name, "password": PASSWORD})
    assert created.status == 200, created.text
    return Person(call, name, created.json["user_id"], await sign_in(call, name))


async def sign_in(call: Caller, name: str) -> str:
    """Return a new token."""
    response = await call("POST", "/users/login", {"name": name, "password": PASSWORD})
    assert response.status == 200, response.text
    token: str = response.json["token"]
    return token


async def open_polls(gateway: Service, number: int) -> None:
    """Wait until the gateway has this number of open polls and streams."""

    async def reached() -> bool:
        return await gateway.metric("ringback_open_polls") == number

    await until(reached, 30)


@dataclass(frozen=True)
class StreamEvent:
    """A server-sent event."""

    id: str
    data: Any


class Stream:
    """An open stream. `ids` are all ids it has received, also those without an event."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.ids: list[str] = []

    async def next(self, within: float = 60.0) -> StreamEvent | None:
        """Return the next event, or None at the normal end of the stream."""
        fields: dict[str, str] = {}
        while True:
            line = await asyncio.wait_for(self.response.content.readline(), within)
            if not line:
                return None
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
                if name == "id":
                    self.ids.append(value)
            elif "data" in fields:
                return StreamEvent(fields["id"], json.loads(fields["data"]))

    async def texts(self, count: int) -> list[str]:
        """Return the texts of the next messages."""
        events = [await self.next() for _ in range(count)]
        return [event.data["event"]["text"] for event in events if event is not None]


@asynccontextmanager
async def streaming(
    gateway: Service, token: str, last_event_id: str | None = None
) -> AsyncIterator[Stream]:
    """Yield an open stream."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    url = f"{await base_url(gateway)}/events/stream?token={token}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Stream(response)
