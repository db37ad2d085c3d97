"""What came by mail or SMS, in memory and bounded, and the questions about it over HTTP."""

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

from services.sandbox.memory import Tally, Told
from services.sandbox.orders import Behaviour, MailBehaviour, MailOrder, SmsOrder
from services.sandbox.parsing import parsed

KEPT_ARRIVALS: Final = 1000
KEPT_BYTES: Final = 32 * 1024 * 1024
"""Bytes kept of all arrivals together; the oldest go first."""
SHOWN: Final = 50

O = TypeVar("O", MailOrder, SmsOrder)  # noqa: E741 - an order


@dataclass(frozen=True, slots=True)
class Arrival:
    """One try to have a mail or an SMS delivered, taken or not."""

    number: int
    received_at: float
    """Unix time in seconds."""
    sender: str
    """The envelope's sender of a mail; who signed the request of an SMS."""
    to: tuple[str, ...]
    id: str | None
    """The ``Message-ID`` of a mail, with its angle brackets; the id in an SMS's path."""
    try_number: int | None
    """Which try this is with this ``id``; the first is 1."""
    accepted: bool
    status: int | None
    """The code answered; None if there never is a whole answer."""
    behaviour: str | None
    fault: str | None
    """Why it was not good, whatever was answered."""
    content: bytes


class Inbox(Generic[O]):
    """The last arrivals, how many there were in all, and the order they are met with."""

    def __init__(self, order: O) -> None:
        self.order: O = order
        self.accepted = 0
        self.refused = 0
        self._told: Told[Behaviour | MailBehaviour] = Told()
        self._arrivals: deque[Arrival] = deque()
        self._bytes = 0
        self._numbered = 0
        self._tries = Tally()
        self._accepted_by = Tally()
        self._arrival = asyncio.Event()

    def obey(self, order: O) -> None:
        """Take an order in place of the one before; its ``times`` begin to count."""
        self.order = order
        self._told = Told(order.behaviour, order.times)

    def meet(self, to: Sequence[str]) -> Behaviour | MailBehaviour | None:
        """Return the behaviour that these recipients meet, and count it."""
        order = self.order
        if order.behaviour is None:
            return None
        if order.to:
            to = [each for each in to if any(_matches(each, pattern) for pattern in order.to)]
            if not to:
                return None
        return self._told.meet(to[0].lower() if to and order.per == "to" else "")

    @property
    def times_left(self) -> int | None:
        """How often the behaviour will still be met; None if that is not one number."""
        return None if self.order.per == "to" else self._told.left()

    def keep(  # noqa: PLR0913 - one line of each arrival's record
        self,
        at: float,
        *,
        sender: str = "",
        to: tuple[str, ...] = (),
        id: str | None = None,  # noqa: A002 - what it is called everywhere
        status: int | None,
        accepted: bool = False,
        behaviour: str | None = None,
        fault: str | None = None,
        content: bytes = b"",
    ) -> None:
        """Keep one more arrival, dropping the oldest if there are too many, and wake who waits."""
        self._numbered += 1
        tries = self._tries.add(id) if id else None
        if accepted:
            self.accepted += 1
            for key in {id, *to} - {None}:
                self._accepted_by.add(str(key))
        else:
            self.refused += 1
        self._arrivals.append(
            Arrival(
                number=self._numbered,
                received_at=at,
                sender=sender,
                to=to,
                id=id,
                try_number=tries,
                accepted=accepted,
                status=status,
                behaviour=behaviour,
                fault=fault,
                content=content,
            )
        )
        self._bytes += len(content)
        while len(self._arrivals) > KEPT_ARRIVALS or self._bytes > KEPT_BYTES:
            self._bytes -= len(self._arrivals.popleft().content)
        self._arrival.set()
        self._arrival.clear()

    def arrivals(
        self,
        to: str | None = None,
        id: str | None = None,  # noqa: A002
        accepted: bool | None = None,  # noqa: FBT001 - a filter
    ) -> Iterator[Arrival]:
        """Iterate over the kept arrivals, newest first."""
        for each in reversed(self._arrivals):
            if (
                (to is None or to in each.to)
                and id in (None, each.id)
                and accepted in (None, each.accepted)
            ):
                yield each

    def arrival(self, number: int) -> Arrival | None:
        """Return one arrival, if it is still kept."""
        return next((each for each in self._arrivals if each.number == number), None)

    def count(self, key: str | None) -> int:
        """Return how many were accepted, in all or for one recipient or id, kept or not."""
        return self.accepted if key is None else self._accepted_by[key]

    async def wait(self, key: str | None, count: int) -> None:
        """Return as soon as :meth:`count` has reached ``count``."""
        while self.count(key) < count:
            await self._arrival.wait()

    def forget(self) -> None:
        """Forget what came, and the counters; the order stays."""
        self._arrivals.clear()
        self._bytes = self.accepted = self.refused = 0
        self._tries = Tally()
        self._accepted_by = Tally()


class Filter(BaseModel):
    """Which arrivals are asked for; what is left out does not narrow them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    to: str | None = None
    id: str | None = None
    accepted: bool | None = None
    limit: int = Field(SHOWN, ge=1, le=KEPT_ARRIVALS)


class Wait(BaseModel):
    """How many accepted arrivals to wait for, for how many seconds, and how many to be shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    to: str | None = None
    id: str | None = None
    count: PositiveInt = 1
    timeout: float = Field(10, gt=0, le=300)
    limit: int = Field(SHOWN, ge=1, le=KEPT_ARRIVALS)

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.to is not None and self.id is not None:
            raise ValueError("give to or id, not both")
        return self


class InboxApi(Generic[O]):
    """The HTTP handlers around one inbox, below one path."""

    def __init__(self, path: str, inbox: Inbox[O], shown: Callable[[Arrival], Any]) -> None:
        self._path = path
        self._inbox: Inbox[O] = inbox
        self._order: type[O] = type(inbox.order)
        self._shown = shown

    def routes(self) -> list[web.RouteDef]:
        """Return every route."""
        return [
            web.get(self._path, self.list_arrivals),
            web.delete(self._path, self.forget),
            web.get(f"{self._path}/wait", self.wait),
            web.get(f"{self._path}/order", self.show_order),
            web.put(f"{self._path}/order", self.take_order),
            web.get(f"{self._path}/{{number:[0-9]{{1,18}}}}", self.show),
        ]

    async def list_arrivals(self, request: web.Request) -> web.Response:
        """Answer with the kept arrivals that match, newest first."""
        wanted = parsed(Filter, request.query)
        return web.json_response({"items": self._matching(wanted)})

    async def show(self, request: web.Request) -> web.Response:
        """Answer with one arrival, if it is still kept."""
        arrival = self._inbox.arrival(int(request.match_info["number"]))
        if arrival is None:
            raise web.HTTPNotFound(
                text='{"detail": "it is not kept, or never came"}', content_type="application/json"
            )
        return web.json_response(self._shown(arrival))

    async def wait(self, request: web.Request) -> web.Response:
        """Answer as soon as enough were accepted, or at the time-out with ``complete`` false."""
        wanted = parsed(Wait, request.query)
        key = wanted.to or wanted.id
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wanted.timeout):
                await self._inbox.wait(key, wanted.count)
        count = self._inbox.count(key)
        shown = Filter(to=wanted.to, id=wanted.id, accepted=True, limit=wanted.limit)
        return web.json_response(
            {"complete": count >= wanted.count, "count": count, "items": self._matching(shown)}
        )

    async def forget(self, _request: web.Request) -> web.Response:
        """Forget what came, and the counters; the order stays."""
        self._inbox.forget()
        return web.Response(status=204)

    async def show_order(self, _request: web.Request) -> web.Response:
        """Answer with the order and the counters."""
        return web.json_response(
            {
                "accepted": self._inbox.accepted,
                "refused": self._inbox.refused,
                "order": self._inbox.order.model_dump(mode="json"),
            }
        )

    async def take_order(self, request: web.Request) -> web.Response:
        """Take an order in place of the one before."""
        self._inbox.obey(parsed(self._order, await request.read()))
        return await self.show_order(request)

    def _matching(self, wanted: Filter) -> list[Any]:
        found = self._inbox.arrivals(wanted.to, wanted.id, wanted.accepted)
        return [self._shown(arrival) for arrival in islice(found, wanted.limit)]


def arrival_json(arrival: Arrival) -> dict[str, Any]:
    """Return what mails and SMS have in common."""
    return {
        "number": arrival.number,
        "received_at": datetime.fromtimestamp(arrival.received_at, UTC).isoformat(),
        "to": arrival.to,
        "id": arrival.id,
        "try": arrival.try_number,
        "accepted": arrival.accepted,
        "status": arrival.status,
        "behaviour": arrival.behaviour,
        "fault": arrival.fault,
    }


def _matches(address: str, pattern: str) -> bool:
    return fnmatchcase(address.lower(), pattern.lower())
