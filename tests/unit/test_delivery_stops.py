"""Stops with a database that responds slowly."""

import asyncio
from collections.abc import Collection

import pytest

from services.delivery.stops import MAX_AGE, Stops
from shared.errors import InfrastructureError


class SlowStore:
    """A store whose statements take some seconds each."""

    def __init__(self, *durations: float) -> None:
        self.now = 0.0
        self.durations = list(durations)

    async def stops(self, _: Collection[str]) -> dict[str, float]:
        await asyncio.sleep(0)
        self.now += self.durations.pop(0) if len(self.durations) > 1 else self.durations[0]
        return {}


async def check(store: SlowStore) -> None:
    stops = Stops(store, lambda: store.now)  # type: ignore[arg-type]
    running = asyncio.create_task(stops.run())
    try:
        async with asyncio.timeout(5):
            await stops.check("m-1")
    finally:
        running.cancel()


async def test_m2_a_stop_that_is_read_too_slowly_is_read_again() -> None:
    await check(SlowStore(MAX_AGE, 0.1))


async def test_m2_a_slow_database_is_no_failure_of_the_provider() -> None:
    with pytest.raises(InfrastructureError, match="too slowly"):
        await check(SlowStore(MAX_AGE))
