"""Shares the result of an expensive read between all callers."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Seconds for which a value is used again.
LIFETIME: Final = 1.0
# A value that took long to read is used for this many times as long, up to a limit. So reads take
# at most 5 % of the time.
FACTOR: Final = 20
MAX_LIFETIME: Final = 5.0
# Values that are kept. Pages use two or three.
MAX_VALUES: Final = 10


class Shared(Generic[K, V]):
    """Reads a value once for all callers that want it at about the same time.

    read: returns the value for a key.
    monotonic: returns seconds.
    """

    def __init__(self, read: Callable[[K], Awaitable[V]], monotonic: Callable[[], float]) -> None:
        self._read = read
        self._monotonic = monotonic
        self._values: dict[K, tuple[float, V]] = {}
        self._turn = asyncio.Lock()

    async def get(self, key: K) -> V:
        """Return the value for a key, which may be a second old. One caller reads it."""
        async with self._turn:
            started = self._monotonic()
            expires, value = self._values.get(key, (started, None))
            if value is not None and started < expires:
                return value
            value = await self._read(key)
            ended = self._monotonic()
            lifetime = min(max(LIFETIME, FACTOR * (ended - started)), MAX_LIFETIME)
            self._values[key] = ended + lifetime, value
            while len(self._values) > MAX_VALUES:
                del self._values[next(iter(self._values))]
            return value
