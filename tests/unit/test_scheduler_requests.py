"""Requests to the scheduler do not delay each other without need."""

import asyncio
from unittest.mock import AsyncMock, Mock
from uuid import uuid4

import pytest

from services.scheduler.requests import (
    MAX_CONCURRENT,
    MAX_COUNTS,
    MAX_WAITING_COUNTS,
    Requests,
)
from shared.amqp.rpc import RequestContext, failure_of
from shared.contracts.requests import Failure, FailureCode
from shared.resilience.turns import BusyError

SHOP = RequestContext("shop")
BOUNDS = b'{"bounds": ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]}'


async def test_s7_counts_of_due_callbacks_do_not_delay_other_requests() -> None:
    running = asyncio.Event()

    async def count(*_: object) -> None:
        running.set()
        await asyncio.Event().wait()  # never ends

    found = Failure(code=FailureCode.NOT_FOUND, detail="no such callback")
    requests = Requests(
        Mock(),
        Mock(get=AsyncMock(return_value=found)),
        Mock(count=count),
        fault=Mock(),
        anonymous=False,
    ).handlers()
    counts = [
        asyncio.ensure_future(requests["CountDue"](SHOP, BOUNDS)) for _ in range(2 * MAX_CONCURRENT)
    ]
    await running.wait()
    request = f'{{"id": "{uuid4()}"}}'.encode()
    async with asyncio.timeout(5):
        assert await requests["GetCallback"](SHOP, request) is found
    for task in counts:
        task.cancel()
    await asyncio.gather(*counts, return_exceptions=True)


async def test_s7_counts_that_cannot_run_soon_hold_no_place_among_the_requests() -> None:
    """Each request that waits takes a place in the prefetch window from all others."""
    running, done = asyncio.Event(), asyncio.Event()

    async def count(*_: object) -> None:
        running.set()
        await done.wait()

    requests = Requests(Mock(), Mock(), Mock(count=count), fault=Mock(), anonymous=False).handlers()

    def start() -> asyncio.Future[object]:
        return asyncio.ensure_future(requests["CountDue"](SHOP, BOUNDS))

    counts = [start() for _ in range(MAX_COUNTS + MAX_WAITING_COUNTS)]
    await running.wait()
    async with asyncio.timeout(5):
        with pytest.raises(BusyError) as busy:
            await start()
    assert failure_of(busy.value).code is FailureCode.UNAVAILABLE
    # One that has given up leaves its place to another.
    given_up = counts.pop()
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    counts.append(start())
    async with asyncio.timeout(5):
        with pytest.raises(BusyError):
            await start()
        done.set()
        await asyncio.gather(*counts)
        await start()
