"""Reads user events through the service subscriptions, and waits for new ones."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from pydantic_core import to_json

from services.gateway.polls.waiters import Waiter
from services.gateway.rpc import ServiceClient
from shared.amqp.rpc import RequestContext
from shared.contracts.polls import READ_EVENTS

# Reads of this process at a time. Thousands of polls can be woken at once. The others queue here,
# where the timeout of their request has not started, and where they delay no other route.
MAX_READS: Final = 100


class Event(NamedTuple):
    """A user event, and the cursor behind it. `event` is JSON."""

    cursor: str
    type: str
    event: str

    @property
    def json(self) -> str:
        """Return the event as clients get it."""
        return f'{{"type":"{self.type}","event":{self.event}}}'


class Page(NamedTuple):
    """Events of a user, and the cursor behind the last one, or behind the position read from."""

    user_id: int
    events: list[Event]
    next_cursor: str


class EventReader:
    """Reads user events. The number of reads at a time is bounded."""

    def __init__(self, services: ServiceClient) -> None:
        self._services = services
        self._reads = asyncio.Semaphore(MAX_READS)

    async def read(
        self, token_hash: str, *, cursor: str | None, limit: int, context: RequestContext
    ) -> Page:
        """Return the events after a cursor, or after the position of the token, which moves.

        Raises:
            ProblemError: 401 if the token is not valid, 422 if the cursor is not; 503; 504.
        """
        body = to_json({"token_hash": token_hash, "cursor": cursor, "limit": limit})
        async with self._reads:
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
