"""N2: what failed at any endpoint is listed, at a bounded cost for messages to endpoints."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

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


@pytest.mark.parametrize(
    ("endpoints", "order", "most"),
    [
        (1, "number", 12),
        (40, "number", 40 + 2 * 11),  # endpoints fail at the same time
        (40, "endpoint", 40 + 11 * 11),  # one fails after the other
    ],
)
async def test_n2_what_failed_is_read_from_an_index_and_once_for_most_endpoints(
    client: EndpointsClient, endpoints: int, order: str, most: int
) -> None:
    """Deliveries that did not fail cost nothing, and neither do those of deleted endpoints."""
    ids = [await client.endpoint() for _ in range(endpoints + 1)]
    await client.send(id="m")
    for id_ in ids:
        await client.settle(id_, "delivered")
    await client.connection.execute(
        "INSERT INTO subscriptions.deliveries (endpoint_id, client_id, message_id, webhook_id,"  # noqa: S608
        " in_order, status, due_at, finished_at) SELECT endpoint, 'shop', 'm', 'm', false,"
        " CASE WHEN number % 20 = 0 THEN 'failed' ELSE 'delivered' END, now(), now()"
        " FROM generate_series(1, 1000) AS number, unnest($1::uuid[]) AS endpoint"
        f" ORDER BY {order}",
        ids,
    )
    await client.control("DeleteEndpoint", ids[-1])
    await client.connection.execute("VACUUM ANALYZE subscriptions.deliveries")
    limit = 11
    found = await client.connection.fetch(SQL["failed_of_client"], "shop", 1 << 62, limit)
    latest = await client.connection.fetch(
        "SELECT id FROM subscriptions.deliveries WHERE status = 'failed' AND endpoint_id <> $1"
        " ORDER BY id DESC LIMIT $2",
        ids[-1],
        limit,
    )
    assert [row["id"] for row in found] == [row["id"] for row in latest]
    sql = f"EXPLAIN (ANALYZE, FORMAT JSON) {SQL['failed_of_client']}"
    [plan] = json.loads(await client.connection.fetchval(sql, "shop", 1 << 62, limit))
    scans = list(_scans(plan["Plan"], "deliveries"))
    assert {scan["Index Name"] for scan in scans} == {"deliveries_failed"}, plan
    read = sum(
        (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"]
        for scan in scans
    )
    assert limit <= read <= most, plan


def _scans(node: Any, table: str) -> Iterator[Any]:
    """Yield the parts of a plan that read a table."""
    if node.get("Relation Name") == table:
        yield node
    for each in node.get("Plans", ()):
        yield from _scans(each, table)
