"""The scheduler on a real database: facts, misfires, recurrence, retention and faults."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from prometheus_client import REGISTRY

from services.scheduler.partitions import partition_name
from services.scheduler.retention import Retention
from services.scheduler.store import SQL
from shared.amqp.rpc import ANONYMOUS
from tests.fakes.scheduling import (
    ALLOWED_EXCHANGE,
    URL,
    Scheduler,
    blocked,
    delivered,
    dispatch_failed,
    finished,
    schedulers,
)
from tests.fakes.waiting import until


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url) as (one,):
        yield one


async def test_finding_a8_a_retry_that_races_with_retention_leaves_no_orphan(
    scheduler: Scheduler,
) -> None:
    old = await finished(scheduler, "failed")
    name = await expired_partition(scheduler, old)
    async with scheduler.database.transaction() as connection:
        # A retry that has not been committed yet.
        await connection.fetch(SQL["restart"], [old])
        deleting = asyncio.create_task(scheduler.partitions.delete(name, 100))
        await until(lambda: blocked(scheduler))
    await deleting
    assert (await scheduler.status(old))["status"] == "scheduled"

    other = await finished(scheduler, "failed")
    name = await expired_partition(scheduler, other)
    await scheduler.partitions.delete(name, 100)
    assert await scheduler.store.restart([other]) == []


async def test_a_callback_that_is_rescheduled_to_now_is_dispatched_at_once(
    database_url: str,
) -> None:
    async with schedulers(database_url, poll=30.0) as (scheduler,):
        dispatching = asyncio.create_task(scheduler.dispatcher.run())
        try:
            for _ in range(20):
                callback = await scheduler.create()
                await scheduler.request("RescheduleCallback", id=str(callback), delay=0)
                await until(lambda: scheduler.broker.sent, within=20)
                scheduler.broker.sent.clear()
        finally:
            dispatching.cancel()


async def test_finding_a9_notifications_expire_later_if_a_callback_service_clock_is_ahead(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create(retry_params={"stop_after_delay": 300})
    await scheduler.make_due(callback)
    (first,) = await scheduler.dispatch()
    expired = dispatch_failed(callback, attempt=0)
    hour = timedelta(hours=1)
    await scheduler.settle(expired.model_copy(update={"at": datetime.now(UTC) + hour}))
    await scheduler.make_due(callback)
    (second,) = await scheduler.dispatch()
    later = datetime.fromisoformat(second["expires_at"]) - datetime.fromisoformat(
        first["expires_at"]
    )
    assert abs(later - hour) < timedelta(seconds=20)
    # A clock that is absurdly far ahead has a limited effect.
    absurd = dispatch_failed(callback, dispatch=2, attempt=0)
    await scheduler.settle(absurd.model_copy(update={"at": datetime(9999, 1, 1, tzinfo=UTC)}))
    await scheduler.make_due(callback)
    (third,) = await scheduler.dispatch()
    assert datetime.fromisoformat(third["expires_at"]) < datetime.now(UTC) + 30 * hour


@pytest.mark.parametrize("kind", ["cancelled", "failed", "notified"])
async def test_finding_a11_a_fact_that_a_crash_prevented_is_published_by_another_process(
    scheduler: Scheduler, kind: str
) -> None:
    scheme = {"transport": "amqp", "exchange": ALLOWED_EXCHANGE, "routing_key": "due"}
    callback = await scheduler.create(
        **({"notify_scheme": scheme} if kind == "notified" else {"misfire": "skip"})
    )
    scheduler.broker.confirms_facts.clear()  # the process stops before its fact is confirmed
    if kind == "cancelled":
        crashing = asyncio.create_task(scheduler.request("CancelCallbacks", id=str(callback)))
    else:
        await scheduler.age(callback, timedelta(hours=3))
        crashing = asyncio.create_task(scheduler.dispatch())

    async def committed() -> bool:
        return bool((await scheduler.status(callback))["status"] == kind)

    await until(committed)
    crashing.cancel()
    other = Scheduler(scheduler.database)
    await other.changes.run_once()
    assert other.broker.facts == []  # the process may still be publishing
    await scheduler.database.execute("UPDATE scheduler.unpublished_facts SET leased_until = now()")
    await other.changes.run_once()
    assert len(other.broker.published_facts(kind)) == 1
    await other.changes.run_once()
    assert len(other.broker.facts) == 1


async def test_a_fact_that_its_cause_cannot_repeat_survives_a_crash(scheduler: Scheduler) -> None:
    callback = await scheduler.create(repeat={"every": 60})
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    await scheduler.request("CancelCallbacks", id=str(callback))
    scheduler.broker.confirms_facts.clear()
    # The delivery of this occurrence is reported, and the callback ends as cancelled.
    crashing = asyncio.create_task(scheduler.settle(delivered(f"{callback}.1")))

    async def committed() -> bool:
        return bool((await scheduler.status(callback))["status"] == "cancelled")

    await until(committed)
    crashing.cancel()
    await scheduler.database.execute("UPDATE scheduler.unpublished_facts SET leased_until = now()")
    other = Scheduler(scheduler.database)
    running = asyncio.create_task(other.settler.run())
    await other.settle(delivered(f"{callback}.1"))
    await other.changes.run_once()
    running.cancel()
    assert len(other.broker.published_facts("notified")) == 1


async def test_finding_a11_a_fact_stored_by_a_newer_version_is_published(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create()
    scheduler.broker.confirms_facts.clear()
    crashing = asyncio.create_task(scheduler.request("CancelCallbacks", id=str(callback)))
    stored = "SELECT facts FROM scheduler.unpublished_facts"
    await until(lambda: scheduler.database.fetchrow(stored))
    crashing.cancel()
    await scheduler.database.execute(
        "UPDATE scheduler.unpublished_facts SET leased_until = now(),"
        """ facts = ARRAY[(facts[1]::jsonb || '{"type": "schedule.new", "field": 1}')::text]"""
    )
    other = Scheduler(scheduler.database)
    await other.changes.run_once()
    (fact,) = other.broker.published_facts("new")
    assert fact["field"] == 1


async def test_finding_a11_a_confirmed_fact_is_not_stored(scheduler: Scheduler) -> None:
    callback = await scheduler.create(repeat={"every": 60})
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    await scheduler.settle(delivered(callback))
    await scheduler.request("CancelCallbacks", id=str(callback))
    assert len(scheduler.broker.facts) == 2
    assert await scheduler.database.fetch("SELECT FROM scheduler.unpublished_facts") == []


async def expired_partition(scheduler: Scheduler, callback: UUID) -> str:
    """Move a finished callback into a new partition of 31 days ago, and return its name."""
    long_ago = datetime.now(UTC) - timedelta(days=31)
    name = partition_name(long_ago.date())
    await scheduler.database.execute(
        f"CREATE TABLE IF NOT EXISTS scheduler.{name} PARTITION OF scheduler.finished_callbacks"
        f" FOR VALUES FROM ('{long_ago.date()}') TO ('{long_ago.date() + timedelta(days=1)}')"
    )
    await scheduler.database.execute(
        "UPDATE scheduler.finished_callbacks SET finished_at = $2 WHERE id = $1", callback, long_ago
    )
    return name


async def test_a_repeated_fact_changes_nothing_and_is_published_under_the_same_id(
    scheduler: Scheduler,
) -> None:
    callback = await finished(scheduler, "notified")
    await scheduler.settle(delivered(callback))
    assert (await scheduler.status(callback))["attempts"] == 1
    fact_ids = [fact["fact_id"] for fact in scheduler.broker.published_facts("notified")]
    assert len(fact_ids) == 2  # a crash may have lost the first one
    assert len(set(fact_ids)) == 1


async def test_facts_about_unknown_callbacks_are_ignored(scheduler: Scheduler) -> None:
    await scheduler.settle(delivered(uuid4()), delivered("not a uuid"))
    assert scheduler.broker.facts == []


async def test_finding_a16_urls_headers_and_secrets_are_encrypted_in_the_database(
    scheduler: Scheduler,
) -> None:
    url = "https://shop.example.com/canary-path?token=canary-token"
    scheme = {"headers": {"Authorization": "Bearer canary-header"}}
    callback = await scheduler.create(hmac_secret="canary-secret", url=url, notify_scheme=scheme)
    await scheduler.create(hmac_secret=["canary-1", "canary-2"], delay=0)
    rows = await scheduler.database.fetch(
        "SELECT r::text AS row FROM scheduler.callback_requests r"
    )
    assert not any("canary" in row["row"] for row in rows)
    assert not any(b"canary".hex() in row["row"] for row in rows)
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    sent = [json.loads(message.body)["hmac_secret"] for message in scheduler.broker.sent]
    assert sorted(map(str, sent)) == ["['canary-1', 'canary-2']", "canary-secret"]
    notification = json.loads(scheduler.broker.sent[-1].body)
    assert notification["target_url"] == url
    assert notification["headers"] == scheme["headers"]


async def test_a_misfire_is_skipped_on_request(scheduler: Scheduler) -> None:
    fired = await scheduler.create()
    skipped = await scheduler.create(misfire={"policy": "skip", "grace": 60})
    for callback in (fired, skipped):
        await scheduler.age(callback, timedelta(hours=3))
    assert [body["id"] for body in await scheduler.dispatch()] == [str(fired)]
    status = await scheduler.status(skipped)
    assert status["status"] == "failed"
    assert "misfire" in status["last_error"]


async def test_finding_d9_a_due_time_in_the_past_is_not_lag(scheduler: Scheduler) -> None:
    def total() -> tuple[float, float]:
        read = REGISTRY.get_sample_value
        name = "ringback_schedule_lag_seconds"
        return read(f"{name}_count") or 0.0, read(f"{name}_sum") or 0.0

    past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    before = total()
    await scheduler.create(run_at=past)
    moved = await scheduler.create()
    await scheduler.request("RescheduleCallback", id=str(moved), run_at=past)
    changed = await scheduler.create()
    await scheduler.request("RescheduleCallback", id=str(changed), run_at=past, context="new")
    await scheduler.make_due(changed)
    await scheduler.dispatch()
    count, seconds = (after - start for after, start in zip(total(), before, strict=True))
    assert count == 3
    assert seconds < 10
    # A callback that fell due while no scheduler was running is late.
    late = await scheduler.create()
    await scheduler.database.execute(
        "UPDATE scheduler.scheduled_callbacks SET next_at = now() - interval '1 h' WHERE id = $1",
        late,
    )
    other = Scheduler(scheduler.database)
    other.clock.sync(datetime.now(UTC), other.clock.start())
    await other.dispatch()
    assert total()[1] - before[1] >= 3600


async def test_overdue_callbacks_are_dispatched_oldest_first(scheduler: Scheduler) -> None:
    callbacks = [await scheduler.create(delay=3600 + n) for n in range(6)]
    await scheduler.database.execute(
        "UPDATE scheduler.scheduled_callbacks SET next_at = next_at - interval '2 hours'"
    )
    await scheduler.dispatcher.run_once(3)
    await scheduler.dispatcher.drain(10)
    dispatched = {json.loads(message.body)["id"] for message in scheduler.broker.sent}
    assert dispatched == {str(callback) for callback in callbacks[:3]}


async def test_a_new_dispatcher_works_off_a_backlog(scheduler: Scheduler) -> None:
    scheme = {"transport": "amqp", "exchange": ALLOWED_EXCHANGE, "routing_key": "due"}
    callbacks = [{"url": URL, "delay": 60, "notify_scheme": scheme}] * 50
    await scheduler.request("CreateCallbacks", callbacks=callbacks)
    await scheduler.database.execute("UPDATE scheduler.scheduled_callbacks SET next_at = now()")
    new = Scheduler(scheduler.database, batch=10)
    running = asyncio.create_task(new.dispatcher.run())
    await until(lambda: len(new.broker.published_facts("notified")) == 50)
    running.cancel()
    assert len(new.broker.sent) == 50


async def test_a_recurring_callback_is_dispatched_for_each_occurrence(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create(repeat={"every": 3600, "count": 2}, delay=60)
    for occurrence in (1, 2):
        await scheduler.age(callback, timedelta(seconds=3600))
        (body,) = await scheduler.dispatch()
        assert body["id"] == f"{callback}.{occurrence}"
        assert body["payload"]["occurrence"] == occurrence
        assert (await scheduler.status(callback))["occurrence"] == occurrence
        await scheduler.settle(delivered(body["id"], dispatch=occurrence))
    assert (await scheduler.status(callback))["status"] == "notified"
    assert len(scheduler.broker.published_facts("notified")) == 2


async def test_missed_occurrences_coalesce(scheduler: Scheduler) -> None:
    callback = await scheduler.create(repeat={"every": 60}, delay=60)
    await scheduler.age(callback, timedelta(hours=2))
    assert len(await scheduler.dispatch()) == 1
    await scheduler.settle(delivered(f"{callback}.1"))
    assert await scheduler.dispatch() == []
    run_at = datetime.fromisoformat((await scheduler.status(callback))["run_at"])
    assert timedelta(0) < run_at - datetime.now(UTC) <= timedelta(seconds=60)


async def test_retention_deletes_old_callbacks_and_frees_their_keys(scheduler: Scheduler) -> None:
    old = await finished(scheduler, "notified", event_key="old")
    recent = await finished(scheduler, "failed", event_key="recent")
    waiting = await scheduler.create(event_key="waiting")
    name = await expired_partition(scheduler, old)

    assert await Retention(scheduler.partitions, timedelta(days=30)).run_once() == [name]

    assert (await scheduler.status(old))["code"] == "not_found"
    assert (await scheduler.status(recent))["status"] == "failed"
    assert (await scheduler.status(waiting))["status"] == "scheduled"
    await scheduler.create(event_key="old")
    used = await scheduler.request("CreateCallback", callback={"url": URL, "event_key": "recent"})
    assert used["code"] == "conflict"


async def test_row_24_a_missing_partition_is_created(scheduler: Scheduler) -> None:
    today = partition_name(datetime.now(UTC).date())
    await scheduler.database.execute(f"DROP TABLE scheduler.{today}")
    callback = await finished(scheduler, "notified")
    assert (await scheduler.status(callback))["status"] == "notified"


async def test_a_violated_constraint_is_not_repaired_by_a_new_partition(
    scheduler: Scheduler,
) -> None:
    await scheduler.database.execute(
        "ALTER TABLE scheduler.finished_callbacks ADD CONSTRAINT none CHECK (status = 'failed')"
    )
    try:
        created = await scheduler.request("CreateCallback", callback={"url": URL, "delay": 60})
        async with asyncio.timeout(10):
            with pytest.raises(asyncpg.CheckViolationError, match="none"):
                await scheduler.request("CancelCallbacks", id=created["id"])
    finally:
        await scheduler.database.execute(
            "ALTER TABLE scheduler.finished_callbacks DROP CONSTRAINT none"
        )


async def test_row_26_values_that_postgresql_refuses_are_rejected_before(
    scheduler: Scheduler,
) -> None:
    for context in ('"\\u0000"', "NaN", "1e999999", '"\\ud800"', "[" * 10_000 + "]" * 10_000):
        body = f'{{"callback": {{"url": "{URL}", "context": {context}}}}}'.encode()
        response: Any = await scheduler.handlers["CreateCallback"](ANONYMOUS, body)
        assert response.code == "invalid", context[:20]
    for text in ("\x00", "a\x00b"):
        rejected = await scheduler.request("ListCallbacks", group_key=text)
        assert rejected["code"] == "invalid"
