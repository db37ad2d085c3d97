"""N2, N3: messages to endpoints, their lists and replays, on a real database."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from services.subscriptions.endpoints.domain import filters_of
from shared.contracts.requests import Failure, FailureCode
from tests.fakes.endpoints import REPLAY_RATE, EndpointsClient, running_endpoints

LONG_AGO = "2026-01-01T00:00:00Z"


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[EndpointsClient]:
    async with running_endpoints(database_url) as client:
        yield client


def code(response: Any) -> FailureCode:
    assert isinstance(response, Failure), response
    return response.code


@pytest.mark.parametrize(
    ("event_type", "selected"),
    [
        ("invoice.paid", {"*", "invoice.*", "invoice.paid"}),
        ("invoice.paid.late", {"*", "invoice.*", "invoice.paid.*"}),
        ("invoice", {"*"}),
        ("invoices.paid", {"*"}),
        ("order.paid", {"*"}),
    ],
)
async def test_n1_an_endpoint_selects_event_types_exactly_or_by_a_prefix(
    client: EndpointsClient, event_type: str, selected: set[str]
) -> None:
    for name in ("*", "invoice.*", "invoice.paid", "invoice.paid.*"):
        await client.endpoint(name, "unrelated", description=name)
    await client.as_client("other").endpoint("*")
    response = await client.send(event_type, id="m")
    assert response.endpoints == len(selected)
    message = await client("GetEndpointMessage", id="m")
    reached = {delivery.endpoint_id for delivery in message.deliveries}
    endpoints = (await client("ListEndpoints")).items
    assert {e.description for e in endpoints if e.id in reached} == selected


def test_n1_the_filters_of_an_event_type() -> None:
    assert filters_of("a.b.c") == ["*", "a.*", "a.b.*", "a.b.c"]


@pytest.mark.parametrize("event_type", ["", "a b", "a.*", "*", ".a", "a..b", "a" * 101, "ä"])
async def test_n2_an_invalid_event_type_is_rejected(
    client: EndpointsClient, event_type: str
) -> None:
    response = await client.send(event_type)
    assert [error.field for error in response.errors] == ["event_type"]


@pytest.mark.parametrize("id_", [".", "..", "a/b", "/", "a b", "", "a" * 256, "a.123456789"])
async def test_n2_an_id_that_is_not_a_segment_of_a_path_is_rejected(
    client: EndpointsClient, id_: str
) -> None:
    response = await client.send(id=id_)
    assert [error.field for error in response.errors] == ["id"]


@pytest.mark.parametrize("payload", ["a\0b", "x" * 1_000_001, [[[[]]]] * 300_000])
async def test_n2_a_payload_that_cannot_be_sent_is_rejected(
    client: EndpointsClient, payload: Any
) -> None:
    response = await client.send(payload=payload)
    assert [error.field for error in response.errors] == ["payload"]


@pytest.mark.parametrize("payload", [None, 0, "{not JSON", '{"a": 1}', [], {"ü": "\\u0000"}, 1.5])
async def test_n2_a_payload_is_any_json_value_and_stays_as_it_is(
    client: EndpointsClient, payload: Any
) -> None:
    await client.send(id="m", payload=payload)
    assert (await client("GetEndpointMessage", id="m")).payload == payload


async def test_n2_a_message_with_a_used_id_is_not_sent_again(client: EndpointsClient) -> None:
    id_ = await client.endpoint()
    first = await client.send(id="m", payload={"a": 1, "b": 2})
    await client.endpoint()
    assert await client.send(id="m", payload={"b": 2, "a": 1}) == first
    assert first.endpoints == 1
    assert code(await client.send(id="m", payload={"a": 1, "b": True})) is FailureCode.CONFLICT
    response = await client.send("other", id="m", payload={"a": 1, "b": 2})
    assert code(response) is FailureCode.CONFLICT
    assert await client.statuses(id_) == ["pending"]


async def test_n2_a_message_without_an_id_is_identified_by_its_request(
    client: EndpointsClient,
) -> None:
    message = {"event_type": "a", "payload": 1}
    by_key = [
        await client("SendEndpointMessage", message=message, idempotency_key="k") for _ in range(2)
    ]
    by_request = [await client("SendEndpointMessage", "r", message=message) for _ in range(2)]
    assert by_key[0] == by_key[1]
    assert by_request[0] == by_request[1]
    others = [await client("SendEndpointMessage", message=message) for _ in range(2)]
    assert len({response.id for response in (*by_key, *by_request, *others)}) == 4
    conflict = {"event_type": "a", "payload": 2}
    response = await client("SendEndpointMessage", message=conflict, idempotency_key="k")
    assert code(response) is FailureCode.CONFLICT


async def test_n2_the_webhook_id_of_all_endpoints_is_the_message_id(
    client: EndpointsClient,
) -> None:
    for _ in range(3):
        await client.endpoint()
    await client.send(id="m")
    rows = await client.connection.fetch("SELECT webhook_id FROM subscriptions.deliveries")
    assert [row["webhook_id"] for row in rows] == ["m"] * 3


async def test_n2_attempts_and_messages_are_listed_in_pages(client: EndpointsClient) -> None:
    ids = [await client.endpoint() for _ in range(3)]
    await client.send(id="m")
    rows = await client.connection.fetch(
        "INSERT INTO subscriptions.attempts (delivery_id, attempt, at, status_code, error)"
        " SELECT id, number, now() + make_interval(secs => number), 500, 'no'"
        " FROM subscriptions.deliveries, generate_series(1, 3) AS number RETURNING delivery_id"
    )
    assert len(rows) == 9
    found: list[tuple[Any, int]] = []
    cursor = None
    while True:
        page = await client("ListMessageAttempts", id="m", limit=2, cursor=cursor)
        found += [(attempt.endpoint_id, attempt.attempt) for attempt in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert found == [(id_, number) for number in (1, 2, 3) for id_ in ids]
    for number in range(4):
        await client.send(id=f"m{number}")
    messages = await client("ListEndpointMessages", id=str(ids[0]), limit=3)
    assert [item.message_id for item in messages.items] == ["m3", "m2", "m1"]
    rest = await client("ListEndpointMessages", id=str(ids[0]), cursor=messages.next_cursor)
    assert [item.message_id for item in rest.items] == ["m0", "m"]
    assert rest.next_cursor is None
    await client.settle(ids[0], "failed")
    for status, count in (("failed", 5), ("pending", 0)):
        page = await client("ListEndpointMessages", id=str(ids[0]), status=status)
        assert len(page.items) == count
    response = await client("ListMessageAttempts", id="m", cursor="garbage")
    assert code(response) is FailureCode.INVALID
    assert code(await client("GetEndpointMessage", id="other")) is FailureCode.NOT_FOUND


async def test_n3_a_test_message_reaches_only_this_endpoint(client: EndpointsClient) -> None:
    id_ = await client.endpoint("order.*", ordered=True)
    await client.endpoint("*")
    await client.send("order.paid")
    tested = [await client("TestEndpoint", "request", id=str(id_)) for _ in range(2)]
    assert tested[0] == tested[1]
    message = await client("GetEndpointMessage", id=tested[0].message_id)
    assert message.event_type == "endpoint.test"
    assert [(d.endpoint_id, d.status) for d in message.deliveries] == [(id_, "pending")]


async def test_n3_one_message_is_replayed_when_it_has_ended(client: EndpointsClient) -> None:
    id_ = await client.endpoint()
    await client.send(id="m")
    replay = {"message_id": "m"}
    assert (await client.control("ReplayEndpoint", id_, replay=replay)).id
    assert await client.statuses(id_) == ["pending"]
    for status in ("delivered", "failed"):
        await client.settle(id_, status)
        await client.control("ReplayEndpoint", id_, replay=replay)
        assert await client.statuses(id_) == ["pending"]
    response = await client("ReplayEndpoint", id=str(id_), replay={"message_id": "other"})
    assert code(response) is FailureCode.NOT_FOUND


async def test_n3_everything_that_failed_is_replayed_once_at_a_bounded_rate(
    client: EndpointsClient,
) -> None:
    id_, other = await client.endpoint(), await client.endpoint()
    count = int(REPLAY_RATE) + 20
    for number in range(count):
        await client.send(id=f"m{number}")
    await client.settle(id_, "failed")
    await client.settle(other, "failed")
    await client.connection.execute(
        "UPDATE subscriptions.deliveries SET status = 'delivered' WHERE message_id = 'm7'"
    )
    body = {"id": str(id_), "replay": {"since": LONG_AGO}}
    started = [await client("ReplayEndpoint", "request", **body) for _ in range(2)]
    assert started[0] == started[1]
    await client.replays.run_once()
    assert (await client.statuses(id_)).count("pending") == REPLAY_RATE
    # What fails again is not replayed again.
    await client.settle(id_, "failed")
    assert await client.replays.run_once() == 0  # a second has not passed
    assert 0 < (await client.replays.next_in() or 0) <= 1
    await client.connection.execute("UPDATE subscriptions.replays SET next_at = now()")
    await client.replays.run_once()
    pending = await client.connection.fetch(
        "SELECT due_at FROM subscriptions.deliveries WHERE status = 'pending' ORDER BY id"
    )
    assert len(pending) == 19
    due = [row["due_at"] for row in pending]
    assert {later - earlier for earlier, later in pairwise(due)} == {timedelta(seconds=0.01)}
    assert await client.replays.next_in() is None
    assert set(await client.statuses(other)) == {"failed", "delivered"}


async def test_n3_replays_of_an_endpoint_follow_each_other(client: EndpointsClient) -> None:
    id_, other = await client.endpoint(), await client.endpoint()
    for _ in range(int(REPLAY_RATE) + 20):
        await client.send()
    await client.settle(id_, "failed")
    await client.settle(other, "failed")
    for endpoint in (id_, id_, id_, other):
        await client("ReplayEndpoint", id=str(endpoint), replay={"since": LONG_AGO})
    assert await client.replays.run_once() == 2 * REPLAY_RATE
    assert await client.replays.run_once() == 0
    assert (await client.statuses(id_)).count("pending") == REPLAY_RATE
    assert 0 < (await client.replays.next_in() or 0) <= 1
    while await client.replays.next_in() is not None:
        await client.connection.execute("UPDATE subscriptions.replays SET next_at = now()")
        await client.replays.run_once()
    assert set(await client.statuses(id_)) == {"pending"}


async def test_n3_replays_are_listed_with_their_progress(client: EndpointsClient) -> None:
    id_, other = await client.endpoint(), await client.endpoint()
    for _ in range(int(REPLAY_RATE) + 20):
        await client.send()
    await client.settle(id_, "failed")

    async def replay() -> Any:
        return (await client("ReplayEndpoint", id=str(id_), replay={"since": LONG_AGO})).id

    first, second = await replay(), await replay()

    async def replays(**fields: Any) -> Any:
        return await client("ListReplays", id=str(id_), **fields)

    await client.replays.run_once()
    listed = await replays()
    assert [(each.id, each.replayed) for each in listed.items] == [
        (second, 0),
        (first, REPLAY_RATE),
    ]
    assert listed.next_cursor is None
    while await client.replays.next_in() is not None:
        await client.connection.execute("UPDATE subscriptions.replays SET next_at = now()")
        await client.replays.run_once()
    page = await replays(limit=1)
    rest = await replays(limit=1, cursor=page.next_cursor)
    assert [each.replayed for each in (*page.items, *rest.items)] == [0, REPLAY_RATE + 20]
    assert all(each.finished_at is not None for each in (*page.items, *rest.items))
    assert rest.next_cursor is None
    assert (await client("ListReplays", id=str(other))).items == []
    assert code(await client.as_client("bank")("ListReplays", id=str(id_))) is FailureCode.NOT_FOUND
    assert code(await replays(cursor="x")) is FailureCode.INVALID


async def test_n3_a_replay_has_an_interval(client: EndpointsClient) -> None:
    id_ = await client.endpoint()
    for number in range(4):
        await client.send(id=f"m{number}")
    await client.settle(id_, "failed")
    await client.connection.execute(
        "UPDATE subscriptions.deliveries"
        " SET finished_at = timestamptz '2026-03-01 00:00Z' + make_interval(hours => id::int - "
        " (SELECT min(id)::int FROM subscriptions.deliveries))"
    )
    replay = {"since": "2026-03-01T01:00:00Z", "until": "2026-03-01T03:00:00Z"}
    await client.control("ReplayEndpoint", id_, replay=replay)
    assert await client.statuses(id_) == ["failed", "pending", "pending", "failed"]


@pytest.mark.parametrize(
    "replay",
    [
        {},
        {"since": LONG_AGO, "message_id": "m"},
        {"until": LONG_AGO},
        {"since": LONG_AGO, "until": LONG_AGO},
        {"since": "yesterday"},
        {"message_id": ""},
    ],
)
async def test_n3_an_invalid_replay_is_rejected(client: EndpointsClient, replay: Any) -> None:
    id_ = await client.endpoint()
    response = await client("ReplayEndpoint", id=str(id_), replay=replay)
    assert code(response) is FailureCode.INVALID


async def test_n3_replays_in_order_and_of_paused_and_disabled_endpoints(
    client: EndpointsClient,
) -> None:
    ordered, paused = await client.endpoint(ordered=True), await client.endpoint()
    for _ in range(3):
        await client.send()
    await client.settle(ordered, "failed")
    await client.settle(paused, "failed")
    await client.control("PauseEndpoint", paused)
    for id_ in (ordered, paused):
        await client.control("ReplayEndpoint", id_, replay={"since": LONG_AGO})
    assert await client.statuses(ordered) == ["pending", "waiting", "waiting"]
    assert await client.statuses(paused) == ["waiting"] * 3
    await client.settle(ordered, "failed")
    await client.send(id="last")
    await client.settle(ordered, "delivered")
    await client.control("ReplayEndpoint", ordered, replay={"message_id": "last"})
    assert await client.statuses(ordered) == ["failed"] * 3 + ["pending"]
    await client.settle(paused, "failed")
    await client("ReplayEndpoint", id=str(paused), replay={"since": LONG_AGO})
    await client.connection.execute(
        "UPDATE subscriptions.endpoints SET status = 'disabled' WHERE id = $1", paused
    )
    await client.work()
    assert await client.statuses(paused) == ["failed"] * 4
    response = await client("ReplayEndpoint", id=str(paused), replay={"since": LONG_AGO})
    assert code(response) is FailureCode.CONFLICT


async def test_n2_retention_keeps_what_is_not_finished(client: EndpointsClient) -> None:
    done, waiting = await client.endpoint("a"), await client.endpoint("b")
    deleted = await client.endpoint("a")
    await client.control("PauseEndpoint", waiting)
    await client.send("a", id="done")
    await client.send("b", id="waiting")
    await client.settle(done, "delivered")
    await client.control("DeleteEndpoint", deleted)
    await client.connection.execute(
        "INSERT INTO subscriptions.attempts (delivery_id, attempt, at)"
        " SELECT id, 1, now() FROM subscriptions.deliveries"
    )
    for table, column in (
        ("deliveries", "finished_at"),
        ("endpoint_messages", "created_at"),
        ("attempts", "at"),
    ):
        await client.connection.execute(
            f"UPDATE subscriptions.{table} SET {column} = {column} - interval '2 days'"  # noqa: S608
        )
    assert await client.messages.prune(timedelta(days=3), 100) == 0
    while await client.messages.prune(timedelta(days=1), 1):
        pass
    assert code(await client("GetEndpointMessage", id="done")) is FailureCode.NOT_FOUND
    found = await client("GetEndpointMessage", id="waiting")
    assert [delivery.status for delivery in found.deliveries] == ["waiting"]
    rows = await client.connection.fetch("SELECT id FROM subscriptions.endpoints")
    assert {row["id"] for row in rows} == {done, waiting}
    assert datetime.now(UTC) > found.created_at


async def test_retention_looks_at_a_few_kept_messages_at_a_time(client: EndpointsClient) -> None:
    """Otherwise, millions of them would exceed the time limit of a statement."""
    waiting, done = await client.endpoint("b"), await client.endpoint("a")
    for number in range(3):
        await client.send("b", id=f"b{number}")
    await client.send("a", id="a")
    await client.settle(done, "delivered")
    await client.connection.execute(
        "UPDATE subscriptions.deliveries SET finished_at = finished_at - interval '2 days'"
    )
    await client.connection.execute(
        "UPDATE subscriptions.endpoint_messages SET created_at = created_at - interval '2 days'"
    )
    day = timedelta(days=1)
    assert [await client.messages.prune(day, 2) for _ in range(4)] == [1, 1, 0, 0]
    assert code(await client("GetEndpointMessage", id="a")) is FailureCode.NOT_FOUND
    assert await client.statuses(waiting) == ["pending"] * 3
    await client.settle(waiting, "delivered")
    await client.connection.execute("DELETE FROM subscriptions.deliveries")
    assert [await client.messages.prune(day, 2) for _ in range(3)] == [1, 0, 2]
