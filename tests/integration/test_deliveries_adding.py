"""N1, N4, N5: the status and due time of new deliveries, on a real database."""

from collections.abc import AsyncIterator
from datetime import datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.subscriptions.deliveries import store
from services.subscriptions.deliveries.domain import user_event_webhook_id
from services.subscriptions.deliveries.store import NewDelivery
from shared.contracts.callback import check_webhook_id
from shared.ids import uuid7
from tests.fakes.messenger import empty_subscriptions


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(await empty_subscriptions(database_url))
    try:
        yield connection
    finally:
        await connection.close()


async def endpoint(connection: Any, **fields: Any) -> UUID:
    id_ = uuid7()
    values = {"id": id_, "client_id": "shop", "url": b"", "secret": b"", **fields}
    names = ", ".join(values)
    places = ", ".join(f"${index + 1}" for index in range(len(values)))
    sql = f"INSERT INTO subscriptions.endpoints ({names}) VALUES ({places})"  # noqa: S608 - fixed
    await connection.execute(sql, *values.values())
    return id_


async def add(connection: Any, *deliveries: NewDelivery) -> None:
    async with connection.transaction():
        await store.add(connection, deliveries)


async def statuses(connection: Any, endpoint_id: UUID) -> list[str]:
    rows = await connection.fetch(
        "SELECT status FROM subscriptions.deliveries WHERE endpoint_id = $1 ORDER BY id",
        endpoint_id,
    )
    return [row["status"] for row in rows]


async def test_n5_only_the_first_delivery_of_an_ordered_endpoint_is_pending(
    connection: asyncpg.Connection,
) -> None:
    ordered, free = await endpoint(connection, ordered=True), await endpoint(connection)
    await add(connection, *(NewDelivery(id_, "a", payload="1") for id_ in (ordered, free) * 2))
    await add(connection, NewDelivery(ordered, "b", payload="1"), NewDelivery(free, "b"))
    assert await statuses(connection, ordered) == ["pending", "waiting", "waiting"]
    assert await statuses(connection, free) == ["pending"] * 3
    await add(connection, NewDelivery(ordered, "test", payload="1", at_once=True))
    assert (await statuses(connection, ordered))[-1] == "pending"


async def test_n4_deliveries_of_a_paused_endpoint_wait_and_of_a_disabled_one_fail(
    connection: asyncpg.Connection,
) -> None:
    for status, expected in (
        ("paused", "waiting"),
        ("disabled", "failed"),
        ("deleted", "cancelled"),
    ):
        id_ = await endpoint(connection, status=status)
        await add(connection, NewDelivery(id_, "a", payload="1"))
        assert await statuses(connection, id_) == [expected]


async def test_n1_a_rate_is_the_time_between_due_times(connection: asyncpg.Connection) -> None:
    id_ = await endpoint(connection, rate_limit=4.0)
    await add(connection, *(NewDelivery(id_, "a", payload="1") for _ in range(2)))
    await add(connection, *(NewDelivery(id_, "a", payload="1") for _ in range(2)))
    rows = await connection.fetch("SELECT due_at FROM subscriptions.deliveries ORDER BY id")
    due: list[datetime] = [row["due_at"] for row in rows]
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(due)]
    assert gaps == [0.25] * 3


async def test_n3_finished_deliveries_are_delivered_again_at_a_rate(
    connection: asyncpg.Connection,
) -> None:
    id_ = await endpoint(connection)
    await add(connection, *(NewDelivery(id_, "a", payload="1") for _ in range(3)))
    await connection.execute(
        "UPDATE subscriptions.deliveries SET status = 'failed', finished_at = now() WHERE id > $1",
        await connection.fetchval("SELECT min(id) FROM subscriptions.deliveries"),
    )
    ids = [row["id"] for row in await connection.fetch("SELECT id FROM subscriptions.deliveries")]
    async with connection.transaction():
        assert sorted(await store.redeliver(connection, id_, ids, 10.0)) == sorted(ids)[1:]
    rows = await connection.fetch("SELECT status, due_at FROM subscriptions.deliveries ORDER BY id")
    assert [row["status"] for row in rows] == ["pending"] * 3
    assert (rows[2]["due_at"] - rows[1]["due_at"]).total_seconds() == pytest.approx(0.1)


def test_the_webhook_id_of_a_user_event_is_never_ambiguous() -> None:
    assert user_event_webhook_id(7, "message-1") == "7-message-1"
    for event_id in ("a.1234567890", "x" * 255):
        assert check_webhook_id(user_event_webhook_id(7, event_id))
        assert len(user_event_webhook_id(7, event_id)) <= 255
