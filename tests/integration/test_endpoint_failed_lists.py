"""N2: what failed at any endpoint is listed, at a bounded cost for messages to endpoints."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.subscriptions.endpoints.messages import SQL
from shared.contracts.requests import FailureCode
from tests.fakes.endpoints import EndpointsClient, running_endpoints
from tests.fakes.waiting import until


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[EndpointsClient]:
    async with running_endpoints(database_url) as client:
        yield client


async def test_n2_what_failed_at_all_endpoints_is_listed_in_pages(
    client: EndpointsClient,
) -> None:
    other = client.as_client("other")
    await other.endpoint()
    await other.send(id="of another client")
    one, two, deleted = [await client.endpoint(name) for name in ("*", "invoice.*", "invoice.*")]
    for number in range(3):
        await client.send(id=f"m-{number}")
    for endpoint, status in ((one, "failed"), (two, "failed"), (deleted, "failed")):
        await client.settle(endpoint, status)
    await client.send(id="delivered")
    await client.settle(one, "delivered")
    await client.control("DeleteEndpoint", deleted)
    found = []
    cursor = None
    for expected in (4, 2):
        page = await client("ListFailedDeliveries", limit=4, cursor=cursor)
        assert len(page.items) == expected
        found += [(each.message_id, each.endpoint_id) for each in page.items]
        cursor = page.next_cursor
    assert cursor is None
    assert [message_id for message_id, _ in found] == sorted(
        [f"m-{number}" for number in range(3)] * 2, reverse=True
    )
    assert {endpoint_id for _, endpoint_id in found} == {one, two}
    assert (await other("ListFailedDeliveries")).items == []
    assert (await client("ListFailedDeliveries", cursor="x")).code is FailureCode.INVALID


async def test_n2_lists_of_what_failed_do_not_delay_other_requests(
    client: EndpointsClient,
) -> None:
    await client.send(id="m")
    # Only the lists read this table.
    async with client.database.transaction() as holder:
        await holder.execute("LOCK TABLE subscriptions.endpoints IN ACCESS EXCLUSIVE MODE")
        lists = [asyncio.create_task(client("ListFailedDeliveries")) for _ in range(8)]
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
        await until(lambda: holder.fetchval(waiting))
        message = asyncio.create_task(client("GetEndpointMessage", id="m"))
        first, _ = await asyncio.wait([message, *lists], return_when=asyncio.FIRST_COMPLETED)
        assert first == {message}
        assert (await message).id == "m"
    for each in lists:
        each.cancel()
    await asyncio.gather(*lists, return_exceptions=True)


async def test_n2_failed_deliveries_are_read_from_their_index(client: EndpointsClient) -> None:
    """Any number of other deliveries costs nothing."""
    endpoint = await client.endpoint()
    await client.send(id="m")
    await client.settle(endpoint, "delivered")
    await client.connection.execute(
        "INSERT INTO subscriptions.deliveries (endpoint_id, client_id, message_id, webhook_id,"
        " in_order, status, due_at, finished_at) SELECT $1, 'shop', 'm', 'm', false,"
        " CASE WHEN number % 20 = 0 THEN 'failed' ELSE 'delivered' END, now(), now()"
        " FROM generate_series(1, 5000) AS number",
        endpoint,
    )
    await client.connection.execute("VACUUM ANALYZE subscriptions.deliveries")
    sql = f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {SQL['failed_of_client']}"
    plan = [row[0] for row in await client.connection.fetch(sql, "shop", 1 << 62, 51)]
    [scan] = [line for line in plan if " on deliveries " in line]
    assert "using deliveries_failed" in scan, plan
    assert "rows=51 " in scan.replace(".00", ""), plan
