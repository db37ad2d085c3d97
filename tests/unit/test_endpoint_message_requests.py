"""N2: pages that people look at do not delay messages to endpoints."""

import asyncio
from unittest.mock import AsyncMock, Mock

from services.subscriptions.endpoints.message_requests import EndpointMessageRequests
from services.subscriptions.endpoints.requests import MAX_CONCURRENT
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure

SHOP = RequestContext("shop")


async def test_n2_lists_of_failed_messages_do_not_delay_other_requests() -> None:
    running = asyncio.Event()

    async def failed(*_: object) -> None:
        running.set()
        await asyncio.Event().wait()  # never ends

    messages = Mock(failed=failed, find=AsyncMock(return_value=None))
    slots = asyncio.Semaphore(MAX_CONCURRENT)
    requests = EndpointMessageRequests(Mock(), messages, slots, added=Mock()).handlers()
    lists = [
        asyncio.ensure_future(requests["ListFailedDeliveries"](SHOP, b"{}"))
        for _ in range(2 * MAX_CONCURRENT)
    ]
    await running.wait()
    async with asyncio.timeout(5):
        found = await requests["GetEndpointMessage"](SHOP, b'{"id": "m-1"}')
    assert isinstance(found, Failure)
    for task in lists:
        task.cancel()
    await asyncio.gather(*lists, return_exceptions=True)
