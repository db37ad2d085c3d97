"""Counts, lists and orders in memory, all of them bounded."""

from typing import Generic, TypeVar

B = TypeVar("B")

KEPT_IDS = 10_000
"""Keys that are counted: a retry may come an hour after its first try."""


class Tally:
    """Counts by key; forgets the keys that were not counted for longest beyond ``KEPT_IDS``."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __getitem__(self, key: str) -> int:
        return self._counts.get(key, 0)

    def add(self, key: str) -> int:
        """Count the key once more and return its count."""
        count = self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > KEPT_IDS:
            del self._counts[next(iter(self._counts))]
        return count


class Told(Generic[B]):
    """A behaviour that was ordered, for so many times (None: for ever), and how often it was met.

    The times are counted for each key; who counts all together leaves the key out.
    """

    def __init__(self, behaviour: B | None = None, times: int | None = None) -> None:
        self.behaviour = behaviour
        self.times = times
        self._spent = Tally()

    def meet(self, key: str = "") -> B | None:
        """Return the behaviour for one more request, and count it; None once it is spent."""
        if self.behaviour is None or self.times is None:
            return self.behaviour
        return self.behaviour if self._spent.add(key) <= self.times else None

    def left(self, key: str = "") -> int | None:
        """Return how many more requests it lasts; None if it lasts for ever."""
        return None if self.times is None else max(0, self.times - self._spent[key])
