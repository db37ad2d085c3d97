"""What browsers follow is read once for all of this process, and only meanwhile."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from shared.errors import InfrastructureError
from shared.http.problem import ProblemError

logger = logging.getLogger(__name__)

Read = Callable[[], Awaitable[Any]]
Values = asyncio.Queue[Any]

# Seconds between two reads.
INTERVAL: Final = 2.0
# Values that wait for one browser. A slow browser misses the oldest. Only the tail has to show
# that: elsewhere, each value replaces the one before.
MAX_WAITING: Final = 5
# Streams of one session in this process. A window has one.
MAX_STREAMS: Final = 20
# In place of a value: no more follow.
END: Final = object()


class Feeds:
    """Reads what browsers follow: once for all that follow the same, and only meanwhile."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._followers: dict[Hashable, set[Values]] = {}
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}
        self._streams = Counter[str]()
        self._closed = False

    @contextmanager
    def stream_of(self, session: str) -> Iterator[None]:
        """Count a stream of a session until the block ends.

        Raises:
            ProblemError: 429, the session has MAX_STREAMS already.
        """
        if self._streams[session] >= MAX_STREAMS:
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_requests",
                f"This session has {MAX_STREAMS} live pages. Close some of them.",
            )
        self._streams[session] += 1
        try:
            yield
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                del self._streams[session]

    @asynccontextmanager
    async def follow(self, key: Hashable, read: Callable[[], Read]) -> AsyncIterator[Values]:
        """Yield the queue of the values that are read from now on.

        `read` returns the function that reads, which may keep a position between its reads.
        """
        values: Values = asyncio.Queue(MAX_WAITING)
        if self._closed:
            values.put_nowait(END)
        followers = self._followers.setdefault(key, set())
        followers.add(values)
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._run(read(), followers))
        try:
            yield values
        finally:
            followers.discard(values)
            if not followers:
                self._tasks.pop(key).cancel()
                del self._followers[key]

    async def close(self, _: web.Application) -> None:
        """End all streams: the process stops."""
        self._closed = True
        for followers in self._followers.values():
            for values in followers:
                _offer(values, END)

    async def _run(self, read: Read, followers: set[Values]) -> None:
        while True:
            try:
                value = await read()
            except (ProblemError, InfrastructureError) as error:
                logger.debug("live part not read: %s", error)
            except Exception:  # a later browser that follows the same would get nothing
                logger.exception("bug in a live part")
            else:
                for values in followers:
                    _offer(values, value)
            await asyncio.sleep(self._interval)


def _offer(values: Values, value: Any) -> None:
    if values.full():
        values.get_nowait()
    values.put_nowait(value)
