"""What a simulation counts: the figures of each target, and their course over time. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

# Points of a course. When they are full, each two become one.
MAX_POINTS: Final = 240

# The counts of a course, each per point.
ATTEMPTS: Final = "attempts"
DELIVERED: Final = "delivered"
DEAD: Final = "dead"
MESSAGES: Final = "messages"
COUNTS: Final = (ATTEMPTS, DELIVERED, DEAD, MESSAGES)


class PerSecond:
    """The number of events, and their peak in one second. Times do not decrease."""

    def __init__(self) -> None:
        self.total = 0
        self.peak = 0
        self._second = -1
        self._in_second = 0

    def add(self, now: float) -> None:
        """Count an event."""
        self.total += 1
        second = int(now)
        if second == self._second:
            self._in_second += 1
        else:
            self._second, self._in_second = second, 1
        self.peak = max(self.peak, self._in_second)


@dataclass(slots=True)
class TargetFigures:
    """The figures of one target so far.

    waiting: the callbacks in each tier, by its name. deepest: their highest number so far.
    messages: what the broker has stored for it: new callbacks, copies in tiers, returns from tiers,
    dead letters. delays: seconds from the creation to the response, of each delivered callback.
    """

    name: str
    callbacks: int = 0
    attempts: int = 0
    deferrals: int = 0
    dead: int = 0
    last_delivery: float | None = None
    messages: PerSecond = field(default_factory=PerSecond)
    delays: array[float] = field(default_factory=lambda: array("d"))
    waiting: dict[str, int] = field(default_factory=dict)
    deepest: dict[str, int] = field(default_factory=dict)

    @property
    def delivered(self) -> int:
        """The number of delivered callbacks."""
        return len(self.delays)

    @property
    def unfinished(self) -> int:
        """The callbacks that are neither delivered nor dead."""
        return self.callbacks - self.delivered - self.dead

    @property
    def deepest_tier(self) -> tuple[str, int] | None:
        """The tier that held the most callbacks at one time, and their number."""
        return max(self.deepest.items(), key=lambda item: item[1], default=None)

    def enter(self, tier: str) -> None:
        """Count a callback that begins to wait in a tier."""
        waiting = self.waiting[tier] = self.waiting.get(tier, 0) + 1
        if waiting > self.deepest.get(tier, 0):
            self.deepest[tier] = waiting

    def percentiles(self, shares: Sequence[float]) -> list[float | None]:
        """Return the delays below which these shares of the delays lie."""
        ordered = sorted(self.delays)
        last = len(ordered) - 1
        return [
            ordered[min(int(share * len(ordered)), last)] if ordered else None for share in shares
        ]


class Course:
    """Counts and depths over time, at most MAX_POINTS points of `width` seconds each."""

    def __init__(self, tiers: Sequence[str]) -> None:
        self.width = 1.0
        self.counts = {name: [0] * MAX_POINTS for name in COUNTS}
        self.depths = {tier: [0] * MAX_POINTS for tier in tiers}
        self._current: dict[str, int] = dict.fromkeys(tiers, 0)
        self._point = 0

    @property
    def points(self) -> int:
        """The number of points with values."""
        return self._point + 1

    def advance(self, now: float) -> None:
        """Begin the points up to a time."""
        while now >= self.width * MAX_POINTS:
            self._merge()
        while self._point < int(now / self.width):
            self._point += 1
            for tier, depth in self._current.items():
                self.depths[tier][self._point] = depth

    def count(self, name: str) -> None:
        """Count an event now."""
        self.counts[name][self._point] += 1

    def depth(self, tier: str, depth: int) -> None:
        """Record the number of callbacks in a tier. A point keeps its highest."""
        self._current[tier] = depth
        depths = self.depths[tier]
        depths[self._point] = max(depths[self._point], depth)

    def _merge(self) -> None:
        half = [0] * (MAX_POINTS // 2)
        for counts in self.counts.values():
            counts[:] = [a + b for a, b in zip(counts[::2], counts[1::2], strict=True)] + half
        for depths in self.depths.values():
            depths[:] = [max(pair) for pair in zip(depths[::2], depths[1::2], strict=True)] + half
        self.width *= 2
        self._point //= 2


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a simulation that ended after `seconds`.

    counted: the figures of each target, then those of all if there are several.
    """

    seconds: float
    counted: Sequence[TargetFigures]
    course: Course

    def rows(self) -> list[Mapping[str, object]]:
        """Return all figures, those of a target in each row."""
        return [_row(each) for each in self.counted]

    def series(self) -> Mapping[str, object]:
        """Return the course as lists of numbers, one for each point."""
        points = self.course.points
        return {
            "width": self.course.width,
            **{name: values[:points] for name, values in self.course.counts.items()},
            "waiting": {
                tier: depths[:points] for tier, depths in self.course.depths.items() if any(depths)
            },
        }


def _row(target: TargetFigures) -> Mapping[str, object]:
    p50, p90, p99 = target.percentiles((0.5, 0.9, 0.99))
    tier, depth = target.deepest_tier or (None, 0)
    return {
        "target": target.name,
        "callbacks": target.callbacks,
        "attempts": target.attempts,
        "deferrals": target.deferrals,
        "delivered": target.delivered,
        "dead": target.dead,
        "waiting": target.unfinished,
        "delay_p50": p50,
        "delay_p90": p90,
        "delay_p99": p99,
        "last_delivery": target.last_delivery,
        "deepest_tier": tier,
        "deepest_tier_waiting": depth,
        "messages": target.messages.total,
        "peak_messages_per_second": target.messages.peak,
    }
