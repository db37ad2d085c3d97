"""Requests to the scheduler do not delay each other without need."""

import asyncio
from unittest.mock import AsyncMock, Mock
from uuid import uuid4

from services.scheduler.requests import MAX_CONCURRENT, Requests
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure, FailureCode

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
