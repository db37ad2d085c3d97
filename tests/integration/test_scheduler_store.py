"""The scheduler on a real database, step by step: requirement by requirement."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.scheduler.retention import Retention
from services.scheduler.store import SQL, partition
from tests.fakes.scheduling import (
    ALLOWED,
    URL,
    Scheduler,
    attempt_failed,
    delivered,
    given_back,
    schedulers,
)
from tests.fakes.waiting import until


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url) as (one,):
        yield one


async def ended(it: Scheduler, how: str, **fields: Any) -> UUID:
    """Create an event that has ended."""
    event = await it.create(**fields)
    if how == "cancelled":
        await it.ask("CancelCallbacks", id=str(event))
        return event
    await it.come(event)
    await it.fire()
    await it.hear(delivered(event) if how == "notified" else given_back(event, final=True))
    return event


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


async def test_s11_a_lease_that_is_over_fires_again_under_the_same_id(it: Scheduler) -> None:
    event = await it.create()
    await it.come(event)
    (first,) = await it.fire()
    assert await it.fire() == []
    await it.come(event)
    (second,) = await it.fire()
    assert first["id"] == second["id"]
    # a late fact of the first dispatch is as good as one of the second
    await it.hear(given_back(event, dispatch=1, final=True))
    assert (await it.status(event))["status"] == "dispatched"
    await it.hear(delivered(event, dispatch=1))
    assert (await it.status(event))["status"] == "notified"


async def test_s11_what_the_broker_did_not_take_is_due_again(it: Scheduler) -> None:
    event = await it.create()
    it.broker.down = True
    await it.come(event)
    assert await it.fire() == []
    assert (await it.status(event))["status"] == "scheduled"
    it.broker.down = False
    await it.come(event)
    assert len(await it.fire()) == 1


async def test_a_repeated_fact_changes_nothing_and_is_told_under_one_id(it: Scheduler) -> None:
    event = await ended(it, "notified")
    await it.hear(delivered(event))
    assert (await it.status(event))["attempts"] == 1
    assert len({fact["fact_id"] for fact in it.broker.told("notified")}) == 1
    await it.hear(delivered(uuid4()), delivered("no event"))


async def test_secrets_lie_sealed(it: Scheduler) -> None:
    event = await it.create(hmac_secret="canary-secret")
    await it.create(hmac_secret=["canary-1", "canary-2"], delay=0)
    rows = await it.database.fetch("SELECT o::text AS row FROM scheduler.orders o")
    assert not any("canary" in row["row"] for row in rows)
    assert not any(b"canary".hex() in row["row"] for row in rows)
    await it.come(event)
    await it.fire()
    sent = [json.loads(message.body)["hmac_secret"] for message in it.broker.sent]
    assert sorted(map(str, sent)) == ["['canary-1', 'canary-2']", "canary-secret"]


async def test_a_misfire_is_skipped_when_asked_for(it: Scheduler) -> None:
    kept, skipped = await it.create(), await it.create(misfire={"policy": "skip", "grace": 60})
    for event in (kept, skipped):
        await it.age(event, timedelta(hours=3))
    assert [body["id"] for body in await it.fire()] == [str(kept)]
    status = await it.status(skipped)
    assert status["status"] == "failed"
    assert "misfire" in status["last_error"]


async def test_missed_events_fire_oldest_first(it: Scheduler) -> None:
    events = [await it.create(delay=3600 + n) for n in range(6)]
    await it.database.execute("UPDATE scheduler.events SET next_at = next_at - interval '2 hours'")
    await it.dispatcher.run_once(3)
    await it.dispatcher.drain(10)
    fired = {json.loads(message.body)["id"] for message in it.broker.sent}
    assert fired == {str(event) for event in events[:3]}


async def test_a_dispatcher_that_starts_before_a_backlog_works_it_off(it: Scheduler) -> None:
    scheme = {"transport": "amqp", "exchange": ALLOWED, "routing_key": "due"}
    made = [{"url": URL, "delay": 60, "notify_scheme": scheme}] * 50
    await it.ask("CreateCallbacks", callbacks=made)
    await it.database.execute("UPDATE scheduler.events SET next_at = now()")
    fresh = Scheduler(it.database, batch=10)
    running = asyncio.create_task(fresh.dispatcher.run())
    await until(lambda: len(fresh.broker.told("notified")) == 50)
    running.cancel()
    assert len(fresh.broker.sent) == 50


async def test_the_claim_reads_the_due_index_only(it: Scheduler) -> None:
    await it.database.execute(
        "WITH made AS (INSERT INTO scheduler.orders (id, client_id, created_at, context, message,"
        " format, lease, stop_after) SELECT gen_random_uuid(), '', now(), 'null', '{', 'event', 60,"
        " 60 FROM generate_series(1, 50000) RETURNING id)"
        " INSERT INTO scheduler.events SELECT id, t, t, 1, 'scheduled', false, false, 0, 1, 0, 0, 0"
        " FROM (SELECT id, now() + (row_number() OVER () - 20) * interval '1 s' AS t FROM made) g"
    )
    await it.database.execute("ANALYZE scheduler.events, scheduler.orders")
    sql = SQL["claim"].replace("$1", "'1970-01-01'").replace("$2", "500")
    plan = "\n".join(row[0] for row in await it.database.fetch("EXPLAIN " + sql))
    assert "Index Scan using events_next_at" in plan
    assert "Seq Scan" not in plan, plan


async def test_a_recurring_event_comes_again(it: Scheduler) -> None:
    event = await it.create(repeat={"every": 3600, "count": 2}, delay=60)
    for occurrence in (1, 2):
        await it.age(event, timedelta(seconds=3600))
        (body,) = await it.fire()
        assert body["id"] == f"{event}.{occurrence}"
        assert body["payload"]["occurrence"] == occurrence
        assert (await it.status(event))["occurrence"] == occurrence
        await it.hear(delivered(body["id"], dispatch=occurrence))
    assert (await it.status(event))["status"] == "notified"
    assert len(it.broker.told("notified")) == 2


async def test_missed_occurrences_coalesce(it: Scheduler) -> None:
    event = await it.create(repeat={"every": 60}, delay=60)
    await it.age(event, timedelta(hours=2))
    assert len(await it.fire()) == 1
    await it.hear(delivered(f"{event}.1"))
    assert await it.fire() == []
    ahead = datetime.fromisoformat((await it.status(event))["run_at"]) - datetime.now(UTC)
    assert timedelta(0) < ahead <= timedelta(seconds=60)


async def test_retention_forgets_what_is_old_and_its_keys(it: Scheduler) -> None:
    old = await ended(it, "notified", event_key="old")
    young = await ended(it, "failed", event_key="young")
    live = await it.create(event_key="live")
    long_ago = datetime.now(UTC) - timedelta(days=31)
    await it.database.execute(
        f"CREATE TABLE scheduler.{partition(long_ago.date())} PARTITION OF scheduler.history"
        f" FOR VALUES FROM ('{long_ago.date()}') TO ('{long_ago.date() + timedelta(days=1)}')"
    )
    await it.database.execute(
        "UPDATE scheduler.history SET finished_at = $2 WHERE id = $1", old, long_ago
    )

    assert await Retention(it.store, timedelta(days=30)).run_once() == [partition(long_ago.date())]

    assert (await it.status(old))["code"] == "not_found"
    assert (await it.status(young))["status"] == "failed"
    assert (await it.status(live))["status"] == "scheduled"
    await it.create(event_key="old")
    used = await it.ask("CreateCallback", callback={"url": URL, "event_key": "young"})
    assert used["code"] == "conflict"


async def test_row_24_a_day_without_a_partition_gets_one(it: Scheduler) -> None:
    today = partition(datetime.now(UTC).date())
    await it.database.execute(f"DROP TABLE scheduler.{today}")
    event = await ended(it, "notified")
    assert (await it.status(event))["status"] == "notified"


async def test_row_23_two_schedulers_claim_nothing_twice(database_url: str) -> None:
    async with schedulers(database_url, 2, batch=50) as (one, two):
        made = [{"url": URL, "delay": 60}] * 1000
        items = (await one.ask("CreateCallbacks", callbacks=made))["items"]
        await one.database.execute("UPDATE scheduler.events SET next_at = now()")

        async def work(each: Scheduler) -> int:
            claimed = 0
            while took := await each.dispatcher.run_once(50):
                claimed += took
            return claimed

        claimed = await asyncio.gather(work(one), work(two))
        for each in (one, two):
            await each.dispatcher.drain(10)
        sent = [json.loads(m.body)["id"] for each in (one, two) for m in each.broker.sent]
        assert sorted(sent) == sorted(item["id"] for item in items)
        assert min(claimed) > 0


async def test_row_26_nothing_that_postgres_refuses_gets_that_far(it: Scheduler) -> None:
    for context in ('"\\u0000"', "NaN", "1e999999", '"\\ud800"', "[" * 10_000 + "]" * 10_000):
        body = f'{{"callback": {{"url": "{URL}", "context": {context}}}}}'.encode()
        answer: Any = await it.handlers["CreateCallback"](None, body)
        assert answer.code == "invalid", context[:20]
    for text in ("\x00", "a\x00b"):
        answer = await it.ask("ListCallbacks", group_key=text)
        assert answer["code"] == "invalid"
