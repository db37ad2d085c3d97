"""Bounded counters, and behaviours that last for a number of requests."""

from typing import Generic, TypeVar

B = TypeVar("B")

# Keys that are counted. A retry may follow an hour after the first attempt.
MAX_KEYS = 10_000


class BoundedCounter:
    """A counter for each key. Beyond `MAX_KEYS`, the least recently counted key is dropped."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __getitem__(self, key: str) -> int:
        return self._counts.get(key, 0)

    def add(self, key: str) -> int:
        """Count the key once more and return its count."""
        count = self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > MAX_KEYS:
            del self._counts[next(iter(self._counts))]
        return count


class LimitedBehaviour(Generic[B]):
    """A behaviour for a number of requests (None: for all), counted for each key.

    Without a key, all requests are counted together.
    """

    def __init__(self, behaviour: B | None = None, times: int | None = None) -> None:
        self.behaviour = behaviour
        self.times = times
        self._requests = BoundedCounter()

    def next(self, key: str = "") -> B | None:
        """Count one more request and return its behaviour; None when the limit is reached."""
        if self.behaviour is None or self.times is None:
            return self.behaviour
        return self.behaviour if self._requests.add(key) <= self.times else None

    def remaining(self, key: str = "") -> int | None:
        """Return the number of requests for which it still lasts; None if unlimited."""
        return None if self.times is None else max(0, self.times - self._requests[key])
