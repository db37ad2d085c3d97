"""Changes of waiting callbacks: replace, send now, and only in the state that was read."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.fakes.scheduling import (
    ALLOWED_EXCHANGE,
    URL,
    Scheduler,
    delivered,
    dispatch_failed,
    finished,
    schedulers,
)

KEYS = {"group_key": "g", "event_key": "e"}
OTHER = "https://other.example.com/hook"


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url) as (one,):
        yield one


async def put(scheduler: Scheduler, client: str | None = None, **fields: Any) -> Any:
    """Create or replace the callback with the keys, due in an hour."""
    if_match = fields.pop("if_match", None)
    callback = {"url": URL, "delay": 3600} | KEYS | fields
    return await scheduler.request("PutCallback", client, callback=callback, if_match=if_match)


async def etag(scheduler: Scheduler, id_: str) -> str:
    found = await scheduler.request("GetCallback", id=id_)
    return str(found["etag"])


async def test_put_creates_a_callback_and_then_replaces_everything_about_it(
    scheduler: Scheduler,
) -> None:
    created = await put(scheduler, hmac_secret="old", notify_scheme={"headers": {"x": "old"}})
    assert created["created"]
    replaced = await put(
        scheduler, url=OTHER, context={"n": 2}, notify_scheme={"headers": {"x": "new"}}, delay=0
    )
    assert replaced | {"run_at": None} == created | {"created": False, "run_at": None}
    found = await scheduler.request("GetCallback", **KEYS)
    assert (found["id"], found["context"]) == (created["id"], {"n": 2})

    await scheduler.make_due(found["id"])
    (body,) = await scheduler.dispatch()
    assert (body["target_url"], body["headers"], body["unsigned"]) == (OTHER, {"x": "new"}, True)
    assert body["payload"]["context"] == {"n": 2}
    assert (await put(scheduler, "shop"))["id"] != created["id"]


async def test_a_replaced_callback_waits_until_claims_of_the_old_request_have_ended(
    scheduler: Scheduler,
) -> None:
    created = await put(scheduler)
    await put(scheduler, delay=0)
    found = await scheduler.request("GetCallback", id=created["id"])
    run_at, next_at = (datetime.fromisoformat(found[name]) for name in ("run_at", "next_at"))
    assert next_at - run_at == timedelta(seconds=5)


async def test_put_between_retries_starts_again_and_ignores_earlier_outcomes(
    scheduler: Scheduler,
) -> None:
    created = await put(scheduler)
    await scheduler.make_due(created["id"])
    await scheduler.dispatch()
    await scheduler.settle(dispatch_failed(created["id"], 1))
    assert (await scheduler.status(created["id"]))["status"] == "retrying"
    assert not (await put(scheduler))["created"]
    status = await scheduler.status(created["id"])
    assert (status["status"], status["attempts"], status["last_error"]) == ("scheduled", 0, None)
    await scheduler.settle(delivered(created["id"], 1))
    assert (await scheduler.status(created["id"]))["status"] == "scheduled"


@pytest.mark.parametrize("state", ["in_flight", "notified", "failed", "cancelled"])
async def test_put_does_not_replace_a_callback_that_does_not_wait(
    scheduler: Scheduler, state: str
) -> None:
    if state == "in_flight":
        created = await put(scheduler)
        await scheduler.make_due(created["id"])
        await scheduler.dispatch()
    else:
        await finished(scheduler, state, **KEYS)
    assert (await put(scheduler, url=OTHER))["code"] == "conflict"


async def test_put_needs_an_event_key_and_a_valid_callback(scheduler: Scheduler) -> None:
    for fields, field in (
        ({"event_key": None}, "event_key"),
        ({"url": "ftp://x"}, "url"),
        ({"run_at": "2126-01-01T00:00:00Z", "delay": None}, "run_at"),
    ):
        failure = await put(scheduler, **fields)
        assert [error["field"] for error in failure["errors"]] == [field]


async def test_run_sends_a_waiting_callback_now(scheduler: Scheduler) -> None:
    callback = await scheduler.create(repeat={"every": 600, "count": 2})
    before = await scheduler.status(callback)
    response = await scheduler.request("RunCallback", id=str(callback))
    assert response == {"id": str(callback), "result": "started"}
    (body,) = await scheduler.dispatch()
    assert body["payload"]["occurrence"] == 1
    again = await scheduler.request("RunCallback", id=str(callback))
    assert again["result"] == "in_flight"
    await scheduler.settle(delivered(f"{callback}.1", 1))
    # The next occurrence keeps its time.
    after = await scheduler.status(callback)
    times = [datetime.fromisoformat(each["run_at"]) for each in (before, after)]
    assert times[1] - times[0] == timedelta(seconds=600)


async def test_run_changes_the_etag_because_the_callback_is_due_at_another_time(
    scheduler: Scheduler,
) -> None:
    callback = str(await scheduler.create())
    before = await etag(scheduler, callback)
    await scheduler.request("RunCallback", id=callback, if_match=[before])
    after = await etag(scheduler, callback)
    assert after != before
    for tag, code in ((before, "precondition_failed"), (after, None)):
        changed = await scheduler.request(
            "RescheduleCallback", id=callback, delay=60, if_match=[tag]
        )
        assert changed.get("code") == code


async def test_run_between_retries_makes_the_next_one_now(scheduler: Scheduler) -> None:
    callback = await scheduler.create()
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    await scheduler.settle(dispatch_failed(callback, 1))
    assert (await scheduler.request("RunCallback", id=str(callback)))["result"] == "started"
    (body,) = await scheduler.dispatch()
    assert body["payload"]["attempt"] == 7


@pytest.mark.parametrize("state", ["notified", "failed", "cancelled"])
async def test_run_reports_a_callback_that_has_ended(scheduler: Scheduler, state: str) -> None:
    callback = await finished(scheduler, state)
    response = await scheduler.request("RunCallback", id=str(callback))
    assert response["result"] == f"already_{state}"
    other = await scheduler.request("RunCallback", "shop", id=str(callback))
    assert other == {"id": None, "result": "not_found"}


async def test_a_change_with_an_outdated_etag_changes_nothing(scheduler: Scheduler) -> None:
    created = await put(scheduler)
    id_ = created["id"]
    outdated = await etag(scheduler, id_)
    assert await etag(scheduler, id_) == outdated
    replaced = await put(scheduler, if_match=[outdated], context=1)
    assert not replaced["created"]
    current = await etag(scheduler, id_)
    assert current != outdated

    changes: list[tuple[str, dict[str, Any]]] = [
        ("RescheduleCallback", {"delay": 60}),
        ("CancelCallbacks", {}),
        ("RunCallback", {}),
    ]
    for operation, body in changes:
        failure = await scheduler.request(operation, id=id_, if_match=[outdated], **body)
        assert failure["code"] == "precondition_failed"
    assert (await put(scheduler, if_match=[outdated]))["code"] == "precondition_failed"
    assert await etag(scheduler, id_) == current

    moved = await scheduler.request(
        "RescheduleCallback", id=id_, delay=60, if_match=['"x"', current]
    )
    assert moved["result"] == "rescheduled"
    any_ = await scheduler.request("CancelCallbacks", id=id_, if_match=["*"])
    assert any_["result"] == "cancelled"
    ended = await etag(scheduler, id_)
    assert ended != current
    late = await scheduler.request("CancelCallbacks", id=id_, if_match=[current])
    assert late["code"] == "precondition_failed"
    same = await scheduler.request("CancelCallbacks", id=id_, if_match=[ended])
    assert same["result"] == "cancelled"


async def test_put_with_an_etag_never_creates(scheduler: Scheduler) -> None:
    assert (await put(scheduler, if_match=["*"]))["code"] == "precondition_failed"
    assert (await scheduler.request("GetCallback", **KEYS))["code"] == "not_found"


async def change(scheduler: Scheduler, id_: UUID, client: str | None = None, **fields: Any) -> Any:
    return await scheduler.request("RescheduleCallback", client, id=str(id_), **fields)


async def test_url_headers_and_context_of_a_waiting_callback_can_be_changed(
    scheduler: Scheduler,
) -> None:
    headers = {"headers": {"x": "old", "y": "1"}}
    callback = await scheduler.create(
        "shop", context={"n": 1}, notify_scheme=headers, hmac_secret="key", delay=3600
    )
    before = await scheduler.status(callback, "shop")
    response = await change(
        scheduler, callback, "shop", url=OTHER, notify_scheme={"headers": {"x": "new"}}
    )
    run_at = response.pop("run_at")
    assert response == {"id": str(callback), "result": "changed"}
    assert datetime.fromisoformat(run_at) == datetime.fromisoformat(before["run_at"])
    after = await scheduler.status(callback, "shop")
    assert after.pop("etag") != before.pop("etag")
    assert after == before  # its time, its attempts and its context stay
    assert (await change(scheduler, callback, "shop", context=None))["result"] == "changed"
    assert (await scheduler.status(callback, "shop"))["context"] is None

    await scheduler.make_due(callback)
    (body,) = await scheduler.dispatch()
    assert (body["target_url"], body["headers"]["x"], body["hmac_secret"]) == (OTHER, "new", "key")
    assert "y" not in body["headers"]
    assert body["payload"]["context"] is None


async def test_a_change_with_a_new_time_does_both_and_waits_for_earlier_claims(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create()
    assert (await change(scheduler, callback, delay=0, url=OTHER))["result"] == "rescheduled"
    found = await scheduler.status(callback)
    run_at, next_at = (datetime.fromisoformat(found[name]) for name in ("run_at", "next_at"))
    assert next_at - run_at == timedelta(seconds=5)
    await scheduler.make_due(callback)
    (body,) = await scheduler.dispatch()
    assert body["target_url"] == OTHER
    assert (await change(scheduler, callback, url=URL))["result"] == "in_flight"


async def test_a_change_between_retries_keeps_the_attempts(scheduler: Scheduler) -> None:
    callback = await scheduler.create()
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    await scheduler.settle(dispatch_failed(callback, 1))
    before = await scheduler.status(callback)
    await change(scheduler, callback, url=OTHER)
    after = await scheduler.status(callback)
    assert (after["status"], after["attempts"]) == ("retrying", before["attempts"])
    # The outcome of the earlier dispatch still counts.
    await scheduler.settle(delivered(callback, 1))
    assert (await scheduler.status(callback))["status"] == "notified"
    assert (await change(scheduler, callback, url=URL))["result"] == "already_notified"


async def test_a_change_that_is_not_valid_changes_nothing(scheduler: Scheduler) -> None:
    callback = await scheduler.create()
    amqp = await scheduler.create(
        notify_scheme={"transport": "amqp", "exchange": ALLOWED_EXCHANGE, "routing_key": "r"}
    )
    tag = await etag(scheduler, str(callback))
    long = {"a": "x" * 1_100_000}
    for id_, fields, field in (
        (callback, {}, "run_at"),
        (callback, {"url": "ftp://x"}, "url"),
        (callback, {"notify_scheme": {"headers": {"X-Service-Ticket": "t"}}}, "notify_scheme"),
        (callback, {"notify_scheme": {"method": "PUT"}}, "notify_scheme"),
        (callback, {"context": {"retry_params": {}}}, "context"),
        (callback, {"context": long}, "context"),
        (amqp, {"url": OTHER}, "url"),
        (amqp, {"notify_scheme": {"headers": {}}}, "notify_scheme"),
    ):
        failure = await change(scheduler, id_, **fields)
        assert {each["field"].split(".")[0] for each in failure["errors"]} == {field}
    assert await etag(scheduler, str(callback)) == tag
    assert (await change(scheduler, amqp, context={"n": 2}))["result"] == "changed"
    assert (await scheduler.status(amqp))["context"] == {"n": 2}
    outdated = await change(scheduler, callback, url=OTHER, if_match=['"x"'])
    assert outdated["code"] == "precondition_failed"
    other = await change(scheduler, callback, "another", url=OTHER)
    assert other["result"] == "not_found"


async def test_put_can_only_create(scheduler: Scheduler) -> None:
    callback = {"url": URL, "delay": 3600} | KEYS
    first = await scheduler.request("PutCallback", callback=callback, create_only=True)
    assert first["created"]
    again = await scheduler.request("PutCallback", callback=callback, create_only=True)
    assert again["code"] == "precondition_failed"
