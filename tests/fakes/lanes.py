"""Lanes with a clock that the test moves."""

import asyncio
from dataclasses import dataclass, field

import pytest

from shared.errors import DeferredError
from shared.resilience.lanes import Breaker, Lanes


class Time:
    """A clock that stands still until the test sets `now`."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@dataclass
class LanesUnderTest:
    """Lanes, their clock, the changes of their breakers, and the reports of full ones."""

    max_in_flight: int = 10
    prefetch: int = 1000
    max_failures: int = 3
    time: Time = field(default_factory=Time)
    changes: list[tuple[str, Breaker, float]] = field(default_factory=list)
    full: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lanes = Lanes(
            max_in_flight=self.max_in_flight,
            prefetch=self.prefetch,
            max_failures=self.max_failures,
            clock=self.time,
            observe=lambda lane, *change: self.changes.append((lane.target, *change)),
            report_full=lambda lane, reason: self.full.append((lane.target, reason)),
        )

    async def enter(self, target: str, deferrals: int = 0) -> bool:
        """Enter a lane that has a place."""
        async with asyncio.timeout(5):
            return await self.lanes.enter(self.lanes.lane(target), deferrals)

    async def attempt(self, target: str, *, alive: bool | None, duration: float = 0.01) -> bool:
        """Make one whole request, and return whether it was a probe."""
        probe = await self.enter(target)
        self.lanes.leave(self.lanes.lane(target), probe=probe, alive=alive, duration=duration)
        return probe

    async def prove(self, target: str, *, duration: float) -> None:
        """Let the target respond until its lane is as wide as possible."""
        for _ in range(self.max_in_flight):
            await self.attempt(target, alive=True, duration=duration)

    async def enter_times(self, target: str, count: int) -> None:
        """Occupy so many places."""
        for _ in range(count):
            await self.enter(target)

    async def deferred(self, target: str, deferrals: int = 0) -> DeferredError:
        """Return the error of a message without a place."""
        with pytest.raises(DeferredError) as caught:
            await self.enter(target, deferrals)
        return caught.value

    def enqueue(self, target: str, count: int) -> list["asyncio.Task[bool]"]:
        """Let so many messages enter, each in a task."""
        lane = self.lanes.lane(target)
        return [asyncio.ensure_future(self.lanes.enter(lane)) for _ in range(count)]


async def run_ready_tasks() -> None:
    """Let all tasks run as far as they can."""
    for _ in range(2):
        await asyncio.sleep(0)
