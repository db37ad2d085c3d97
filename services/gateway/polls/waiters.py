"""Open polls and streams of this process: in memory, without sockets.

A mark is the number of the last wake. No wake is lost between a read and the wait after it: the
wait gets the mark from before the read, and ends at once if its user has been woken since.
"""

import asyncio
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from services.gateway.metrics import OPEN_POLLS

# Users whose last wake is remembered, about 1 MB. If more users than this are woken during a read,
# which usually takes milliseconds, the wait after it ends at once. That costs one more read.
MAX_RECENT: Final = 10_000


class TooManyPollsError(Exception):
    """The process, or the user, has too many open polls and streams."""


class Waiter:
    """One open poll or stream. `end` is called when its client has disconnected."""

    def __init__(self, waiters: "Waiters") -> None:
        self.ended = False
        self.user_id: int | None = None
        self._waiters = waiters
        self._woken: asyncio.Future[None] | None = None

    def mark(self) -> int:
        """Return the number of the last wake. Call it before a read."""
        return self._waiters.mark()

    async def wait(self, user_id: int, *, since: int, until: float) -> bool:
        """Wait until the user is woken after the mark `since`, and return True.

        Return False at `until`, a time of the event loop, or when the waiter ends.

        Raises:
            TooManyPollsError: the user has too many open polls and streams.
        """
        self._waiters.bind(self, user_id)
        if self.ended:
            return False
        if self._waiters.woken_since(user_id, since):
            return True
        self._woken = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(until):
                await self._woken
        except TimeoutError:
            return False
        finally:
            self._woken = None
        return not self.ended

    def wake(self) -> None:
        """End the current wait."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def end(self) -> None:
        """End this and all later waits."""
        self.ended = True
        self.wake()


class Waiters:
    """All waiters of this process, and the recent wakes.

    limit: maximum number of waiters.
    user_limit: maximum number for one user. It also applies to one token, because its user is not
        known before the first read.
    address_limit: maximum number for one address.
    """

    def __init__(self, *, limit: int, user_limit: int, address_limit: int) -> None:
        self._limit = limit
        self._user_limit = user_limit
        self._address_limit = address_limit
        self._closed = False
        self._open: set[Waiter] = set()
        self._of_user: defaultdict[int, set[Waiter]] = defaultdict(set)
        self._of_token: Counter[str] = Counter()
        self._of_address: Counter[str] = Counter()
        self._wakes = 0
        self._recent: OrderedDict[int, int] = OrderedDict()  # user id -> number of the last wake
        self._forgotten = 0  # the last wake that may be missing in `_recent`

    def __len__(self) -> int:
        """Return the number of open waiters."""
        return len(self._open)

    @contextmanager
    def open(self, token_hash: str, address: str) -> Iterator[Waiter]:
        """Yield a new waiter. After `close`, it has ended already.

        Raises:
            TooManyPollsError: the process, the token or the address has too many.
        """
        if (
            len(self._open) >= self._limit
            or self._of_token[token_hash] >= self._user_limit
            or self._of_address[address] >= self._address_limit
        ):
            raise TooManyPollsError
        waiter = Waiter(self)
        waiter.ended = self._closed
        self._open.add(waiter)
        counts = ((self._of_token, token_hash), (self._of_address, address))
        for counter, key in counts:
            counter[key] += 1
        OPEN_POLLS.inc()
        try:
            yield waiter
        finally:
            self._open.remove(waiter)
            for counter, key in counts:
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]
            OPEN_POLLS.dec()
            self._unbind(waiter)

    def mark(self) -> int:
        """Return the number of the last wake."""
        return self._wakes

    def woken_since(self, user_id: int, mark: int) -> bool:
        """Return whether the user was woken after a mark; True if that is no longer known."""
        return self._forgotten > mark or self._recent.get(user_id, 0) > mark

    def bind(self, waiter: Waiter, user_id: int) -> None:
        """Let wakes of the user reach the waiter, from now until it is closed.

        Raises:
            TooManyPollsError: the user has too many.
        """
        if waiter.user_id is not None:
            return
        if len(self._of_user[user_id]) >= self._user_limit:
            raise TooManyPollsError
        waiter.user_id = user_id
        self._of_user[user_id].add(waiter)

    def wake(self, user_ids: Collection[int]) -> None:
        """End the waits of these users: they have new events."""
        self._wakes += 1
        for user_id in user_ids:
            self._recent[user_id] = self._wakes
            self._recent.move_to_end(user_id)
            for waiter in self._of_user.get(user_id, ()):
                waiter.wake()
        while len(self._recent) > MAX_RECENT:
            _, self._forgotten = self._recent.popitem(last=False)

    def wake_all(self) -> None:
        """End all waits: wakes may have been lost."""
        self._wakes += 1
        self._forgotten = self._wakes
        self._recent.clear()
        for waiter in self._open:
            waiter.wake()

    def close(self) -> None:
        """End all waiters, and those that are opened later."""
        self._closed = True
        for waiter in self._open:
            waiter.end()

    def _unbind(self, waiter: Waiter) -> None:
        if waiter.user_id is None:
            return
        others = self._of_user[waiter.user_id]
        others.remove(waiter)
        if not others:
            del self._of_user[waiter.user_id]
