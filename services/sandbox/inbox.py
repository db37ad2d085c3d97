"""Received mails or SMS in bounded memory, and their HTTP API."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Final, Generic, Self, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from services.sandbox.behaviours import Behaviour, MailBehaviour, MailSettings, SmsSettings
from services.sandbox.memory import BoundedCounter, LimitedBehaviour
from services.sandbox.parsing import parse

MAX_MESSAGES: Final = 1000
# Bytes of all stored messages together; the oldest are dropped first.
MAX_STORED_BYTES: Final = 32 * 1024 * 1024
MAX_SHOWN: Final = 50

S = TypeVar("S", MailSettings, SmsSettings)


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """One attempt to deliver a mail or an SMS, accepted or not."""

    number: int
    # Unix time in seconds.
    received_at: float
    # The envelope sender of a mail; the signer of an SMS request.
    sender: str
    to: tuple[str, ...]
    # The `Message-ID` of a mail, with its angle brackets; the id in the path of an SMS.
    id: str | None
    # The number of this attempt with this `id`; the first is 1.
    attempt: int | None
    accepted: bool
    # The code of the response; None if there was no complete response.
    status: int | None
    behaviour: str | None
    # The reason why the message was not valid, for any response.
    fault: str | None
    content: bytes


class Inbox(Generic[S]):
    """The last messages, their total number, and the settings for the next ones."""

    def __init__(self, settings: S) -> None:
        self.settings: S = settings
        self.accepted = 0
        self.refused = 0
        self._behaviour: LimitedBehaviour[Behaviour | MailBehaviour] = LimitedBehaviour()
        self._messages: deque[ReceivedMessage] = deque()
        self._bytes = 0
        self._last_number = 0
        self._attempts = BoundedCounter()
        self._accepted_by = BoundedCounter()
        self._recorded = asyncio.Event()

    def configure(self, settings: S) -> None:
        """Replace the settings; `times` counts from now."""
        self.settings = settings
        self._behaviour = LimitedBehaviour(settings.behaviour, settings.times)

    def next_behaviour(self, to: Sequence[str]) -> Behaviour | MailBehaviour | None:
        """Count one more message to these recipients and return its behaviour, if any."""
        settings = self.settings
        if settings.behaviour is None:
            return None
        if settings.to:
            to = [
                address
                for address in to
                if any(_matches(address, pattern) for pattern in settings.to)
            ]
            if not to:
                return None
        return self._behaviour.next(to[0].lower() if to and settings.per == "to" else "")

    @property
    def times_left(self) -> int | None:
        """How many more messages the behaviour affects; None if unlimited or `per` is `to`."""
        return None if self.settings.per == "to" else self._behaviour.remaining()

    def record(  # noqa: PLR0913 - the fields of a message
        self,
        at: float,
        *,
        sender: str = "",
        to: tuple[str, ...] = (),
        id: str | None = None,  # noqa: A002 - the name in the API
        status: int | None,
        accepted: bool = False,
        behaviour: str | None = None,
        fault: str | None = None,
        content: bytes = b"",
    ) -> None:
        """Store a message, drop the oldest if there are too many, and wake all waiters."""
        self._last_number += 1
        attempt = self._attempts.add(id) if id else None
        if accepted:
            self.accepted += 1
            for key in {id, *to} - {None}:
                self._accepted_by.add(str(key))
        else:
            self.refused += 1
        self._messages.append(
            ReceivedMessage(
                number=self._last_number,
                received_at=at,
                sender=sender,
                to=to,
                id=id,
                attempt=attempt,
                accepted=accepted,
                status=status,
                behaviour=behaviour,
                fault=fault,
                content=content,
            )
        )
        self._bytes += len(content)
        while len(self._messages) > MAX_MESSAGES or self._bytes > MAX_STORED_BYTES:
            self._bytes -= len(self._messages.popleft().content)
        self._recorded.set()
        self._recorded.clear()

    def messages(
        self,
        to: str | None = None,
        id: str | None = None,  # noqa: A002 - the name in the API
        accepted: bool | None = None,  # noqa: FBT001 - a filter
    ) -> Iterator[ReceivedMessage]:
        """Iterate over the stored messages, newest first."""
        for message in reversed(self._messages):
            if (
                (to is None or to in message.to)
                and id in (None, message.id)
                and accepted in (None, message.accepted)
            ):
                yield message

    def message(self, number: int) -> ReceivedMessage | None:
        """Return one message, if it is still stored."""
        return next((message for message in self._messages if message.number == number), None)

    def count(self, key: str | None) -> int:
        """Return how many messages were accepted, in total or for one recipient or id."""
        return self.accepted if key is None else self._accepted_by[key]

    async def wait(self, key: str | None, count: int) -> None:
        """Return as soon as `count()` has reached `count`."""
        while self.count(key) < count:
            await self._recorded.wait()

    def clear(self) -> None:
        """Delete messages and counters; keep the settings."""
        self._messages.clear()
        self._bytes = self.accepted = self.refused = 0
        self._attempts = BoundedCounter()
        self._accepted_by = BoundedCounter()


class Filter(BaseModel):
    """A selection of messages; an omitted field selects all."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    to: str | None = None
    id: str | None = None
    accepted: bool | None = None
    limit: int = Field(MAX_SHOWN, ge=1, le=MAX_MESSAGES)


class Wait(BaseModel):
    """A number of accepted messages to wait for, a timeout in seconds, and a number to show."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    to: str | None = None
    id: str | None = None
    count: PositiveInt = 1
    timeout: float = Field(10, gt=0, le=300)
    limit: int = Field(MAX_SHOWN, ge=1, le=MAX_MESSAGES)

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.to is not None and self.id is not None:
            raise ValueError("set either to or id, not both")
        return self


class InboxApi(Generic[S]):
    """The HTTP handlers of one inbox, under one path."""

    def __init__(
        self, path: str, inbox: Inbox[S], as_json: Callable[[ReceivedMessage], Any]
    ) -> None:
        self._path = path
        self._inbox: Inbox[S] = inbox
        self._settings_model: type[S] = type(inbox.settings)
        self._as_json = as_json

    def routes(self) -> list[web.RouteDef]:
        """Return every route."""
        return [
            web.get(self._path, self.list_messages),
            web.delete(self._path, self.clear),
            web.get(f"{self._path}/wait", self.wait),
            web.get(f"{self._path}/settings", self.show_settings),
            web.put(f"{self._path}/settings", self.replace_settings),
            web.get(f"{self._path}/{{number:[0-9]{{1,18}}}}", self.show),
        ]

    async def list_messages(self, request: web.Request) -> web.Response:
        """Return the stored messages that match, newest first."""
        query = parse(Filter, request.query)
        return web.json_response({"items": self._matching(query)})

    async def show(self, request: web.Request) -> web.Response:
        """Return one message, if it is still stored."""
        message = self._inbox.message(int(request.match_info["number"]))
        if message is None:
            raise web.HTTPNotFound(
                text='{"detail": "message not found; only the last ones are stored"}',
                content_type="application/json",
            )
        return web.json_response(self._as_json(message))

    async def wait(self, request: web.Request) -> web.Response:
        """Respond when enough messages were accepted, or with `complete` false on timeout."""
        query = parse(Wait, request.query)
        key = query.to or query.id
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(query.timeout):
                await self._inbox.wait(key, query.count)
        count = self._inbox.count(key)
        shown = Filter(to=query.to, id=query.id, accepted=True, limit=query.limit)
        return web.json_response(
            {"complete": count >= query.count, "count": count, "items": self._matching(shown)}
        )

    async def clear(self, _request: web.Request) -> web.Response:
        """Delete messages and counters; keep the settings."""
        self._inbox.clear()
        return web.Response(status=204)

    async def show_settings(self, _request: web.Request) -> web.Response:
        """Return the settings and the counters."""
        return web.json_response(
            {
                "accepted": self._inbox.accepted,
                "refused": self._inbox.refused,
                "settings": self._inbox.settings.model_dump(mode="json"),
            }
        )

    async def replace_settings(self, request: web.Request) -> web.Response:
        """Replace the settings."""
        self._inbox.configure(parse(self._settings_model, await request.read()))
        return await self.show_settings(request)

    def _matching(self, query: Filter) -> list[Any]:
        found = self._inbox.messages(query.to, query.id, query.accepted)
        return [self._as_json(message) for message in islice(found, query.limit)]


def message_json(message: ReceivedMessage) -> dict[str, Any]:
    """Return the fields that mails and SMS have in common."""
    return {
        "number": message.number,
        "received_at": datetime.fromtimestamp(message.received_at, UTC).isoformat(),
        "to": message.to,
        "id": message.id,
        "attempt": message.attempt,
        "accepted": message.accepted,
        "status": message.status,
        "behaviour": message.behaviour,
        "fault": message.fault,
    }


def _matches(address: str, pattern: str) -> bool:
    return fnmatchcase(address.lower(), pattern.lower())
