"""Lanes in a world where the test moves the clock."""

import asyncio
from dataclasses import dataclass, field

import pytest

from shared.errors import DeferredError
from shared.resilience.lanes import Breaker, Lanes


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """Lanes with a clock that the test moves, and what they told of their breakers."""

    widest: int = 10
    slots: int = 1000
    failures: int = 3
    time: Time = field(default_factory=Time)
    told: list[tuple[str, Breaker, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lanes = Lanes(
            widest=self.widest,
            slots=self.slots,
            failures=self.failures,
            clock=self.time,
            changed=lambda *change: self.told.append(change),
        )

    async def enter(self, target: str, deferrals: int = 0) -> bool:
        """Enter where that needs no waiting."""
        async with asyncio.timeout(5):
            return await self.lanes.enter(self.lanes.lane(target), deferrals)

    async def attempt(self, target: str, *, alive: bool | None, duration: float = 0.01) -> bool:
        """One whole request; whether it was the probe."""
        probe = await self.enter(target)
        self.lanes.leave(self.lanes.lane(target), probe=probe, alive=alive, duration=duration)
        return probe

    async def prove(self, target: str, *, duration: float) -> None:
        """Make the target known as one that answers, with its lane as wide as it gets."""
        for _ in range(self.widest):
            await self.attempt(target, alive=True, duration=duration)

    async def take(self, target: str, places: int) -> None:
        for _ in range(places):
            await self.enter(target)

    async def refused(self, target: str, deferrals: int = 0) -> DeferredError:
        with pytest.raises(DeferredError) as caught:
            await self.enter(target, deferrals)
        return caught.value


async def settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(2):
        await asyncio.sleep(0)
