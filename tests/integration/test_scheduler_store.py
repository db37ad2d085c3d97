"""The scheduler on a real database, step by step: requirement by requirement."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.fakes.scheduling import (
    ALLOWED,
    URL,
    Scheduler,
    attempt_failed,
    delivered,
    ended,
    given_back,
    schedulers,
)


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url) as (one,):
        yield one


async def test_s1_an_event_fires_when_its_moment_comes_and_not_before(it: Scheduler) -> None:
    event = await it.create(context={"a": 1}, group_key="g", event_key="e")
    assert await it.fire() == []
    assert (await it.status(event))["status"] == "scheduled"
    await it.come(event)

    (body,) = await it.fire()

    assert body["target_url"] == URL
    assert body["payload"]["id"] == body["id"] == str(event)
    assert body["payload"]["context"] == {"a": 1}
    assert (await it.status(event))["status"] == "dispatched"
    await it.hear(delivered(event))
    status = await it.status(event)
    assert (status["status"], status["attempts"]) == ("notified", 1)
    assert status["context"] == {"a": 1}
    assert await it.fire() == []


async def test_s1_what_is_due_already_goes_out_with_its_creation(it: Scheduler) -> None:
    for when in ({"delay": 0}, {"run_at": "2026-11-01T00:00:00Z"}):
        await it.create(**when)
    await it.dispatcher.drain(10)
    assert len(it.broker.sent) == 2
    assert await it.fire() == []


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), "30 days ago"),
        (datetime(2099, 1, 1, tzinfo=UTC), "ten years ahead"),
    ],
)
async def test_s1_moments_out_of_bounds_are_refused_with_the_reason(
    it: Scheduler, moment: datetime, reason: str
) -> None:
    asked = {"url": URL, "run_at": moment.isoformat()}
    answer = await it.ask("CreateCallback", callback=asked)
    assert answer["code"] == "invalid"
    assert answer["errors"][0]["field"] == "run_at"
    assert reason in answer["errors"][0]["message"]
    event = await it.create()
    moved = await it.ask("RescheduleCallback", id=str(event), run_at=moment.isoformat())
    assert moved["code"] == "invalid"


@pytest.mark.parametrize("how", ["live", "notified", "failed", "cancelled"])
async def test_s3_a_used_key_stays_used_after_the_end(it: Scheduler, how: str) -> None:
    keys = {"group_key": "g", "event_key": "e"}
    await (it.create(**keys) if how == "live" else ended(it, how, **keys))
    again = {"url": URL, "delay": 9}
    answer = await it.ask("CreateCallback", callback=again | keys)
    assert (answer["code"], answer["errors"][0]["field"]) == ("conflict", "event_key")
    # Another group, none, and another client have keys of their own.
    await it.create(group_key="h", event_key="e")
    await it.create(event_key="e")
    await it.create(client="shop", **keys)


async def test_s3_of_two_in_one_batch_one_gets_the_key(it: Scheduler) -> None:
    twice: list[Any] = [{"url": URL, "delay": 60, "event_key": "e"}] * 2
    items = (await it.ask("CreateCallbacks", callbacks=twice))["items"]
    assert ["error" in item for item in items] == [False, True]
    assert items[1]["error"]["code"] == "conflict"


async def test_a_batch_is_answered_one_by_one(it: Scheduler) -> None:
    given = [{"url": URL}, {"url": "ftp://x", "delay": -1}, 7, {"url": URL, "delay": 1}]
    items = (await it.ask("CreateCallbacks", callbacks=given))["items"]
    assert ["error" in item for item in items] == [False, True, True, False]
    assert {each["field"] for each in items[1]["error"]["errors"]} == {"url", "delay"}


async def test_an_idempotency_key_makes_one_event(it: Scheduler) -> None:
    asked: dict[str, Any] = {"callback": {"url": URL, "delay": 60}, "idempotency_key": "k"}
    first = await it.ask("CreateCallback", **asked)
    assert (await it.ask("CreateCallback", **asked))["id"] == first["id"]
    other = await it.ask("CreateCallback", callback={"url": URL}, idempotency_key="k")
    assert other["code"] == "conflict"
    assert (await it.ask("CreateCallback", "shop", **asked))["id"] != first["id"]


async def test_s5_quick_retries_then_main_ones_until_it_is_stale(it: Scheduler) -> None:
    params = {
        "stop_after_delay": 1000,
        "strategy": "exponential",
        "base_delay": 100,
        "delay_growth_rate": 3,
    }
    event = await it.create(retry_params=params)
    await it.come(event)
    await it.fire()
    waits = []
    for dispatch in (1, 2, 3):
        await it.hear(attempt_failed(event, dispatch))
        status = await it.status(event)
        assert status["status"] == "retrying"
        assert status["next_at"] is not None
        await it.hear(given_back(event, dispatch, attempt=2))
        status = await it.status(event)
        if status["status"] == "failed":
            break
        wait = datetime.fromisoformat(status["next_at"]) - datetime.now(UTC)
        waits.append(round(wait.total_seconds(), -2))
        await it.age(event, wait)
        await it.fire()
    assert waits == [100, 300]  # the third would come after 1,300 s
    assert (status["status"], status["attempts"]) == ("failed", 6)
    assert "500" in status["last_error"]
    assert [fact["type"] for fact in it.broker.facts] == [
        "schedule.retrying",
        "schedule.retrying",
        "schedule.failed",
    ]


async def test_s6_amqp_goes_to_an_allowed_exchange_only(it: Scheduler) -> None:
    scheme = {"transport": "amqp", "exchange": ALLOWED, "routing_key": "due"}
    event = await it.create(notify_scheme=scheme, context=[1])
    await it.come(event)
    (envelope,) = await it.fire()
    assert (envelope["id"], envelope["context"]) == (str(event), [1])
    assert it.broker.sent[-1].exchange == ALLOWED
    assert it.broker.sent[-1].mandatory
    assert (await it.status(event))["status"] == "notified"
    refused = await it.ask(
        "CreateCallback", callback={"url": URL, "notify_scheme": scheme | {"exchange": "outcomes"}}
    )
    assert refused["errors"][0]["field"] == "notify_scheme.exchange"


async def test_s6_amqp_that_reaches_nobody_is_retried_from_the_database(it: Scheduler) -> None:
    scheme = {"transport": "amqp", "exchange": ALLOWED, "routing_key": "due"}
    event = await it.create(notify_scheme=scheme)
    it.broker.exchanges.discard(ALLOWED)
    await it.come(event)
    await it.fire()
    status = await it.status(event)
    assert (status["status"], status["attempts"]) == ("retrying", 1)
    assert "NO_ROUTE" in status["last_error"]


async def test_s8_cancel_answers_for_every_phase(it: Scheduler) -> None:
    async def cancelled(event: UUID) -> str:
        answer = await it.ask("CancelCallbacks", id=str(event))
        return str(answer["result"])

    waiting, between, flying = [await it.create() for _ in range(3)]
    await it.come(between, flying)
    await it.fire()
    await it.hear(given_back(between))
    assert await cancelled(waiting) == "cancelled"
    assert await cancelled(waiting) == "cancelled"  # a repeat is harmless
    assert await cancelled(between) == "cancelled"
    assert await cancelled(flying) == "in_flight"
    assert await cancelled(await ended(it, "notified")) == "already_notified"
    assert await cancelled(await ended(it, "failed")) == "already_failed"
    assert await cancelled(uuid4()) == "not_found"
    # in flight: no further retry
    await it.hear(given_back(flying))
    assert (await it.status(flying))["status"] == "cancelled"
    assert await it.fire() == []


async def test_s8_a_cancel_in_flight_whose_fact_never_comes_does_not_fire_again(
    it: Scheduler,
) -> None:
    event = await it.create()
    await it.come(event)
    await it.fire()
    await it.ask("CancelCallbacks", id=str(event))
    await it.come(event)  # the lease is over
    assert await it.fire() == []
    assert (await it.status(event))["status"] == "cancelled"


async def test_s8_reschedule_answers_for_every_phase(it: Scheduler) -> None:
    async def moved(event: UUID) -> str:
        answer = await it.ask("RescheduleCallback", id=str(event), delay=7200)
        return str(answer["result"])

    waiting, between, flying = [await it.create() for _ in range(3)]
    await it.come(between, flying)
    await it.fire()
    await it.hear(given_back(between))
    assert await moved(waiting) == "rescheduled"
    assert await moved(between) == "rescheduled"
    assert (await it.status(between))["status"] == "scheduled"
    assert await moved(flying) == "in_flight"
    for how in ("notified", "failed", "cancelled"):
        assert await moved(await ended(it, how)) == f"already_{how}"
    assert await moved(uuid4()) == "not_found"
    # What was on its way before it was moved settles nothing any more.
    await it.hear(delivered(between))
    assert (await it.status(between))["status"] == "scheduled"


async def test_s8_a_moved_event_fires_at_its_new_moment(it: Scheduler) -> None:
    event = await it.create()
    await it.ask("RescheduleCallback", id=str(event), delay=0)
    assert len(await it.fire()) == 1


async def test_s8_by_keys_and_a_whole_group(it: Scheduler) -> None:
    for number in range(3):
        await it.create(group_key="g", event_key=f"e{number}")
    other = await it.create(group_key="h")
    await ended(it, "notified", group_key="g")
    one = await it.ask("CancelCallbacks", group_key="g", event_key="e0")
    assert one["result"] == "cancelled"
    group = await it.ask("CancelCallbacks", group_key="g")
    assert group["counts"] == {"cancelled": 3, "already_notified": 1}
    assert len(group["items"]) == 4
    assert (await it.status(other))["status"] == "scheduled"
    assert (await it.ask("CancelCallbacks", group_key="none"))["counts"] == {}


@pytest.mark.parametrize(
    ("operation", "more"),
    [("GetCallback", {}), ("CancelCallbacks", {}), ("RescheduleCallback", {"delay": 1})],
)
@pytest.mark.parametrize("other", [None, "shop2", ""])
async def test_s9_another_client_s_event_is_not_found(
    it: Scheduler, operation: str, more: dict[str, Any], other: str | None
) -> None:
    event = await it.create(client="shop", group_key="g", event_key="e")
    for named in ({"id": str(event)}, {"group_key": "g", "event_key": "e"}):
        answer = await it.ask(operation, other, **named, **more)
        assert answer.get("result", answer.get("code")) == "not_found"
        assert answer.get("id") is None
    assert (await it.status(event, "shop"))["status"] == "scheduled"


async def test_s9_lists_groups_and_retries_see_one_s_own_only(it: Scheduler) -> None:
    await it.create(client="shop", group_key="g")
    event = await it.create(client="shop")
    await it.come(event)
    await it.fire()
    await it.hear(given_back(event, final=True))
    for other in (None, "bank"):
        assert (await it.ask("ListCallbacks", other))["items"] == []
        assert (await it.ask("ListCallbacks", other, status="failed"))["items"] == []
        assert (await it.ask("ListCallbacks", other, group_key="g"))["items"] == []
        assert (await it.ask("CancelCallbacks", other, group_key="g"))["items"] == []
        assert (await it.ask("RetryCallbacks", other, id=str(event)))["count"] == 0
    assert len((await it.ask("ListCallbacks", "shop"))["items"]) == 2


async def test_s9_a_ticket_of_ours_goes_to_clients_with_a_ticket(it: Scheduler) -> None:
    await it.create(client="shop", delay=0)
    await it.create(delay=0)
    await it.dispatcher.drain(10)
    with_ticket, without = sorted(
        (json.loads(message.body) for message in it.broker.sent),
        key=lambda body: "headers" not in body,
    )
    assert with_ticket["headers"]["X-Service-Ticket"]
    assert with_ticket["client_id"] == "shop"
    assert "headers" not in without


async def test_lists_page_by_cursor_newest_first(it: Scheduler) -> None:
    made = [str(await it.create(group_key="g" if n % 2 else "h")) for n in range(9)]
    found, cursor = [], None
    while True:
        page = await it.ask("ListCallbacks", limit=2, **({"cursor": cursor} if cursor else {}))
        found += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == made[::-1]
    group = await it.ask("ListCallbacks", group_key="g", limit=4)
    assert [item["id"] for item in group["items"]] == made[1::2][::-1]
    assert group["next_cursor"] is None
    none = await it.ask("ListCallbacks", cursor="bm9uc2Vuc2U=")
    assert none["errors"][0]["field"] == "cursor"
    assert (await it.ask("ListCallbacks", limit=10**9))["code"] == "invalid"


async def test_lists_by_status(it: Scheduler) -> None:
    failed = await ended(it, "failed", group_key="g")
    notified = await ended(it, "notified")
    waiting = await it.create()
    for status, event in (("failed", failed), ("notified", notified), ("scheduled", waiting)):
        page = await it.ask("ListCallbacks", status=status)
        assert [item["id"] for item in page["items"]] == [str(event)]
    of_group = await it.ask("ListCallbacks", status="failed", group_key="h")
    assert of_group["items"] == []


async def test_failed_ones_start_again(it: Scheduler) -> None:
    failed = [await ended(it, "failed", group_key=key) for key in ("g", "g", "h")]
    dry = await it.ask("RetryCallbacks", group_key="g", dry_run=True)
    assert (dry["count"], await it.fire()) == (2, [])
    assert (await it.ask("RetryCallbacks", group_key="g"))["count"] == 2
    assert len(await it.fire()) == 2
    assert (await it.status(failed[0]))["status"] == "dispatched"
    await it.hear(delivered(failed[0], dispatch=2))
    assert (await it.status(failed[0]))["status"] == "notified"
    assert (await it.ask("RetryCallbacks", id=str(failed[0])))["count"] == 0
    assert (await it.ask("RetryCallbacks"))["ids"] == [str(failed[2])]
