"""Reads user events from the service subscriptions, and waits for new ones."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from pydantic_core import to_json

from services.gateway.polls.waiters import Waiter
from shared.amqp.rpc import RequestContext
from shared.contracts.polls import READ_EVENTS
from shared.http.service_client import ServiceClient

# Reads of this process at a time. Thousands of polls can be woken at once. Further reads wait here,
# before the timeout of their request starts, and without delaying other routes.
MAX_READS: Final = 100
# Characters of the events that are being sent, about 100 MB with all copies. Beyond this, clients
# that read slowly get one event at a time.
MAX_HELD: Final = 8 << 20


class Event(NamedTuple):
    """A user event, and the cursor after it. `event` is JSON."""

    cursor: str
    type: str
    event: str

    @property
    def json(self) -> str:
        """Return the event as clients get it."""
        return f'{{"type":"{self.type}","event":{self.event}}}'


class Page(NamedTuple):
    """Events of a user, and the cursor after the last one, or that of the position read from."""

    user_id: int
    events: list[Event]
    next_cursor: str


class EventReader:
    """Reads user events. The number of reads at a time is bounded."""

    def __init__(self, services: ServiceClient) -> None:
        self._services = services
        self._reads = asyncio.Semaphore(MAX_READS)
        self._held = 0

    @contextmanager
    def holding(self, page: Page) -> Iterator[None]:
        """Count the events of a page as held in memory while the context lasts."""
        size = sum(len(event.event) for event in page.events)
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def read(
        self, token_hash: str, *, cursor: str | None, limit: int, context: RequestContext
    ) -> Page:
        """Return the events after a cursor, or after the position of the token, which moves.

        At most `limit` events, or one while too many events are held.

        Raises:
            ProblemError: 401 if the token is not valid, 422 if the cursor is not; 503; 504.
        """
        async with self._reads:
            limit = 1 if self._held > MAX_HELD else limit
            body = to_json({"token_hash": token_hash, "cursor": cursor, "limit": limit})
            page = await self._services.request(READ_EVENTS, body, context)
        events = [Event(event["cursor"], event["type"], event["event"]) for event in page["events"]]
        return Page(page["user_id"], events, page["next_cursor"])


async def next_page(
    read: Callable[[], Awaitable[Page]],
    waiter: Waiter,
    *,
    timeout: float,  # noqa: ASYNC109
) -> Page:
    """Return the next events of a user: at once, or as soon as there are some.

    The page is empty after `timeout` seconds, or when the waiter ends. Nothing is read meanwhile.

    Raises:
        TooManyPollsError: the user has too many open polls and streams.
        ProblemError: a read failed.
    """
    until = asyncio.get_running_loop().time() + timeout
    while True:
        mark = waiter.mark()
        page = await read()
        if page.events or not await waiter.wait(page.user_id, since=mark, until=until):
            return page
