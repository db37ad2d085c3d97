"""Requests to the scheduler that are repeated, or that lose the database on the way."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from services.scheduler import operations
from services.scheduler.store import SQL
from shared.amqp.rpc import RequestContext
from shared.contracts.callback import SendCallback
from shared.errors import InfrastructureError
from tests.fakes.scheduling import URL, Scheduler, finished, schedulers
from tests.fakes.waiting import until

LATER = {"url": URL, "delay": 3600}


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url, batch=2) as (one,):
        yield one


async def deliver(
    scheduler: Scheduler, operation: str, message_id: str, client: str | None = None, **body: Any
) -> Any:
    """Deliver a request with this `message_id`, and return the response as JSON."""
    context = RequestContext(client, None, message_id)
    response = await scheduler.handlers[operation](context, json.dumps(body).encode())
    return json.loads(response.model_dump_json())


async def stored(scheduler: Scheduler) -> int:
    row = await scheduler.database.fetchrow("SELECT count(*) AS n FROM scheduler.callback_requests")
    return int(row["n"])


async def test_finding_a3_a_request_that_is_delivered_again_finds_its_own_callback(
    scheduler: Scheduler,
) -> None:
    keyed = LATER | {"event_key": "e"}
    first = await deliver(scheduler, "CreateCallback", "m-1", callback=keyed)
    assert await deliver(scheduler, "CreateCallback", "m-1", callback=keyed) == first
    assert (await deliver(scheduler, "CreateCallback", "m-2", callback=LATER))["id"] != first["id"]
    assert await stored(scheduler) == 2
    # A message id is not a secret: another client has callbacks of its own.
    other = await deliver(scheduler, "CreateCallback", "m-1", "shop", callback=keyed)
    assert other["id"] != first["id"]


async def test_finding_a3_a_batch_that_is_delivered_again_finds_its_own_callbacks(
    scheduler: Scheduler,
) -> None:
    batch = [LATER, LATER, LATER | {"event_key": "e"}, LATER | {"event_key": "e"}, {"url": "x"}]
    first = await deliver(scheduler, "CreateCallbacks", "m-1", callbacks=batch)
    assert ["error" in item for item in first["items"]] == [False, False, False, True, True]
    assert await deliver(scheduler, "CreateCallbacks", "m-1", callbacks=batch) == first
    assert await stored(scheduler) == 3


async def test_finding_a4_a_batch_can_be_repeated_with_its_idempotency_key(
    scheduler: Scheduler,
) -> None:
    body: dict[str, Any] = {"callbacks": [LATER, LATER], "idempotency_key": "k"}
    first = await scheduler.request("CreateCallbacks", **body)
    assert await scheduler.request("CreateCallbacks", **body) == first
    assert await stored(scheduler) == 2
    changed = body | {"callbacks": [LATER, {"url": URL, "delay": 60}]}
    items = (await scheduler.request("CreateCallbacks", **changed))["items"]
    assert items[0] == first["items"][0]
    assert items[1]["error"]["code"] == "conflict"


async def test_a_callback_of_a_batch_is_no_larger_than_one_on_its_own(scheduler: Scheduler) -> None:
    """Validation of 8 MB of unknown fields would take half a second of CPU."""
    large = LATER | {f"field-{number}": None for number in range(100_000)}
    items = (await scheduler.request("CreateCallbacks", callbacks=[large, LATER]))["items"]
    [error] = items[0]["error"]["errors"]
    assert error["message"].startswith("has ")
    assert "at most" in error["message"]
    assert "id" in items[1]


async def test_finding_a4_a_batch_that_loses_the_database_has_a_result_for_each_callback(
    scheduler: Scheduler, database_url: str
) -> None:
    batch = [LATER, LATER, LATER | {"event_key": "locked"}, LATER]
    other = await asyncpg.connect(database_url)
    try:
        transaction = other.transaction()
        await transaction.start()
        # The second statement of the batch waits for this row.
        await other.execute(
            "INSERT INTO scheduler.callback_requests (id, client_id, event_key, created_at,"
            " context, message, format, lease, stop_after)"
            " VALUES (gen_random_uuid(), '', 'locked', now(), 'null', NULL, 'event', 1, 1)"
        )
        body: dict[str, Any] = {"callbacks": batch, "idempotency_key": "k"}
        response = asyncio.create_task(scheduler.request("CreateCallbacks", **body))
        blocked = (
            "SELECT pid FROM pg_stat_activity"
            " WHERE $1::int = ANY(pg_blocking_pids(pid)) AND datname = current_database()"
        )
        own_pid = other.get_server_pid()
        pid = await until(lambda: other.fetchval(blocked, own_pid))
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        items = (await response)["items"]
        assert [item.get("status", item.get("error", {}).get("code")) for item in items] == [
            "scheduled",
            "scheduled",
            "unknown",
            "unknown",
        ]
        await transaction.rollback()
    finally:
        await other.close()

    repeated = (await scheduler.request("CreateCallbacks", **body))["items"]
    assert [item["status"] for item in repeated] == ["scheduled"] * 4
    assert repeated[:2] == items[:2]
    assert await stored(scheduler) == 4


async def test_finding_a4_a_group_that_was_cancelled_in_part_has_an_unknown_result(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "GROUP_BATCH_SIZE", 2)
    await finished(scheduler, "notified", group_key="g")
    callbacks = [await scheduler.create(group_key="g") for _ in range(2)]
    for callback in callbacks:
        await scheduler.make_due(callback)
    await scheduler.dispatch()
    async with scheduler.database.transaction() as connection:
        # The first batch is committed, and then the last callback cannot be locked.
        await connection.fetch(SQL["lock"], [callbacks[-1]])
        with pytest.raises(InfrastructureError) as caught:
            await scheduler.request("CancelCallbacks", group_key="g")
    assert caught.value.effect_unknown
    response = await scheduler.request("CancelCallbacks", group_key="g")
    assert response["counts"] == {"already_notified": 1, "in_flight": 2}


async def test_finding_d13_a_page_of_large_contexts_ends_early_and_returns_its_cursor(
    scheduler: Scheduler,
) -> None:
    large = "x" * 1_000_000
    for number in range(10):
        await scheduler.create(context=large, group_key="g", event_key=f"{number}")
    queries: list[dict[str, Any]] = [{}, {"group_key": "g"}, {"status": "scheduled"}]
    for query in queries:
        sizes: list[int] = []
        keys: list[int] = []
        cursor = None
        while cursor is not None or not sizes:
            page = await scheduler.request("ListCallbacks", limit=1000, cursor=cursor, **query)
            sizes.append(len(json.dumps(page)))
            keys += [int(item["event_key"]) for item in page["items"]]
            cursor = page["next_cursor"]
        assert keys == list(range(9, -1, -1))
        assert max(sizes) < 8 << 20
        assert len(sizes) == 3


async def test_finding_a18_an_event_key_without_a_group_selects_callbacks_of_every_group(
    scheduler: Scheduler,
) -> None:
    created = [await scheduler.create(event_key="e", group_key=group) for group in ("g", "h", None)]
    await scheduler.create(event_key="other", group_key="g")
    await scheduler.create("shop", event_key="e")

    async def listed(**query: Any) -> list[str]:
        page = await scheduler.request("ListCallbacks", event_key="e", **query)
        return [item["id"] for item in page["items"]]

    assert await listed() == [str(id_) for id_ in reversed(created)]
    assert await listed(group_key="g") == [str(created[0])]
    assert await listed(status="failed") == []
    first = await scheduler.request("ListCallbacks", event_key="e", limit=2)
    assert await listed(cursor=first["next_cursor"]) == [str(created[0])]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("context", {"context": "x" * 1_048_400}),
        ("context", {"context": "ü" * 524_000}),
        ("context", {"context": ["x" * 3_000_000]}),
        ("hmac_secret", {"hmac_secret": "whsec_not base64"}),
        ("hmac_secret", {"hmac_secret": "whsec_"}),
        ("hmac_secret", {"hmac_secret": ["a", "whsec_ü"]}),
        (
            "notify_scheme.headers",
            {"notify_scheme": {"headers": {f"x-{number}": "v" for number in range(64)}}},
        ),
        ("notify_scheme.headers", {"notify_scheme": {"headers": {"x": "v" * 16_000}}}),
    ],
    ids=range(8),
)
async def test_finding_d5_what_can_never_be_delivered_is_rejected_at_once(
    scheduler: Scheduler, field: str, fields: dict[str, Any]
) -> None:
    failure = await scheduler.request("CreateCallback", callback=LATER | fields)
    assert [error["field"] for error in failure["errors"]] == [field]
    batch = await scheduler.request("CreateCallbacks", callbacks=[LATER | fields])
    assert [error["field"] for error in batch["items"][0]["error"]["errors"]] == [field]


async def test_finding_d5_the_largest_accepted_callbacks_can_be_delivered(
    scheduler: Scheduler,
) -> None:
    client = "\U0001f600" * 255
    extremes: dict[str, Any] = {
        "group_key": "\U0001f600" * 255,
        "event_key": '"' * 255,
        "hmac_secret": ["\U0001f600" * 1024] * 8,
        "notify_scheme": {"headers": {f"x-{number}": "v" * 170 for number in range(63)}},
    }
    low, high = 0, 1_048_576
    while low + 1 < high:  # find the longest context that is accepted
        middle = (low + high) // 2
        callback = LATER | extremes | {"context": "x" * middle, "event_key": f"{middle:0255}"}
        created = await scheduler.request("CreateCallback", client, callback=callback)
        low, high = (middle, high) if "id" in created else (low, middle)
        if "id" in created:
            largest = created["id"]
    assert low > 900_000
    row = await scheduler.database.fetchrow(
        "UPDATE scheduler.scheduled_callbacks SET next_at = now() WHERE id = $1 RETURNING id",
        largest,
    )
    assert row is not None
    (body,) = await scheduler.dispatch()
    sent = scheduler.broker.sent[-1].body
    assert 1_030_000 < len(sent) <= 1_048_576
    assert SendCallback.model_validate_json(sent).id == largest == body["id"]


async def test_finding_a18_a_retry_of_everything_says_so(scheduler: Scheduler) -> None:
    for body in ({}, {"dry_run": True}, {"all": True, "group_key": "g"}):
        failure = await deliver(scheduler, "RetryCallbacks", "m", **body)
        assert [error["field"] for error in failure["errors"]] == ["all"]
    callback = await finished(scheduler, "failed")
    retried = await scheduler.request("RetryCallbacks", all=True)
    assert retried["ids"] == [str(callback)]
