"""The scheduler on a real database: leases, misfires, recurrence, retention and faults."""

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
from services.scheduler.store import CLAIM_DUE, SQL
from shared.amqp.rpc import ANONYMOUS
from tests.fakes.scheduling import (
    ALLOWED_EXCHANGE,
    URL,
    Scheduler,
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


async def test_s11_an_expired_lease_dispatches_again_under_the_same_id(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create()
    await scheduler.make_due(callback)
    (first,) = await scheduler.dispatch()
    assert await scheduler.dispatch() == []
    await scheduler.make_due(callback)
    (second,) = await scheduler.dispatch()
    assert first["id"] == second["id"]
    # The first dispatch can no longer fail the callback, but it can still deliver it.
    await scheduler.settle(dispatch_failed(callback, dispatch=1, final=True))
    assert (await scheduler.status(callback))["status"] == "dispatched"
    await scheduler.settle(delivered(callback, dispatch=1))
    assert (await scheduler.status(callback))["status"] == "notified"


async def test_finding_a1_only_a_confirmed_callback_without_a_result_gets_a_long_lease(
    scheduler: Scheduler,
) -> None:
    confirmed, settled, lost = [await scheduler.create() for _ in range(3)]
    await scheduler.make_due(confirmed, settled)
    await scheduler.dispatch()
    await scheduler.make_due(lost)
    await scheduler.store.claim(1)  # its process dies before it publishes
    await scheduler.settle(delivered(settled))
    await scheduler.leases.drain(10)
    rows = await scheduler.database.fetch(
        "SELECT id, extract(epoch FROM next_at - now()) AS lease FROM scheduler.scheduled_callbacks"
    )
    leases = {row["id"]: float(row["lease"]) for row in rows}
    assert leases.keys() == {confirmed, lost}
    assert leases[confirmed] > 100
    assert leases[lost] <= 15


async def test_s11_a_callback_that_the_broker_refused_is_due_again(scheduler: Scheduler) -> None:
    callback = await scheduler.create()
    scheduler.broker.refuses_all = True
    await scheduler.make_due(callback)
    assert await scheduler.dispatch() == []
    assert (await scheduler.status(callback))["status"] == "scheduled"
    scheduler.broker.refuses_all = False
    await scheduler.make_due(callback)
    assert len(await scheduler.dispatch()) == 1


async def test_finding_a5_an_outage_of_the_broker_does_not_use_up_stop_after_delay(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create(retry_params={"stop_after_delay": 30})
    scheduler.broker.refuses_all = True
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    await scheduler.age(callback, timedelta(seconds=60))
    scheduler.broker.refuses_all = False
    assert len(await scheduler.dispatch()) == 1


async def test_finding_a5_a_dispatch_that_expired_before_an_attempt_is_repeated(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create(retry_params={"stop_after_delay": 30})
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    await scheduler.settle(dispatch_failed(callback, attempt=0))
    status = await scheduler.status(callback)
    assert (status["status"], status["attempts"]) == ("retrying", 0)
    await scheduler.age(callback, timedelta(seconds=60))
    assert len(await scheduler.dispatch()) == 1


async def test_finding_a6_a_callback_that_was_released_is_skipped_when_it_is_late(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create(misfire={"policy": "skip", "grace": 60})
    scheduler.broker.refuses_all = True
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    scheduler.broker.refuses_all = False
    await scheduler.age(callback, timedelta(hours=3))
    assert await scheduler.dispatch() == []
    status = await scheduler.status(callback)
    assert status["status"] == "failed"
    assert "misfire" in status["last_error"]
    # Its dispatch was delivered after all, which the publish did not show.
    await scheduler.settle(delivered(callback))
    assert (await scheduler.status(callback))["status"] == "notified"
    assert len(scheduler.broker.published_facts("notified")) == 1


async def test_finding_a8_callbacks_without_a_request_do_not_block_others(
    scheduler: Scheduler,
) -> None:
    callbacks = [{"url": URL, "delay": 60}] * 60
    items = (await scheduler.request("CreateCallbacks", callbacks=callbacks))["items"]
    await scheduler.database.execute("DELETE FROM scheduler.callback_requests")
    fired = await scheduler.create(delay=120)
    await scheduler.database.execute("UPDATE scheduler.scheduled_callbacks SET next_at = run_at")
    await scheduler.make_due(*(UUID(item["id"]) for item in items))
    await scheduler.make_due(fired)
    new = Scheduler(scheduler.database)
    running = asyncio.create_task(new.dispatcher.run())
    await until(lambda: new.broker.sent)
    running.cancel()
    assert [json.loads(message.body)["id"] for message in new.broker.sent] == [str(fired)]
    rows = await scheduler.database.fetch("SELECT id FROM scheduler.scheduled_callbacks")
    assert [row["id"] for row in rows] == [fired]


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


async def test_a_drain_during_an_extension_extends_every_lease(scheduler: Scheduler) -> None:
    leases = scheduler.leases
    first, second = [await scheduler.create() for _ in range(2)]
    await scheduler.make_due(first)
    await scheduler.dispatch()
    await leases.run_once()
    await scheduler.make_due(second)
    await scheduler.dispatch()
    async with scheduler.database.transaction() as connection:
        await connection.fetch(SQL["lock"], [first])
        extension = asyncio.create_task(leases.run_once())
        await until(lambda: blocked(scheduler))
        drain = asyncio.create_task(leases.drain(10))
        await asyncio.sleep(0)
    await asyncio.gather(extension, drain)
    short = await scheduler.database.fetch(
        "SELECT FROM scheduler.scheduled_callbacks WHERE next_at < now() + interval '60 s'"
    )
    assert short == []


async def test_row_32_a_drain_waits_for_the_claim_in_progress(scheduler: Scheduler) -> None:
    callback = await scheduler.create()
    await scheduler.make_due(callback)
    async with scheduler.database.transaction() as connection:
        await connection.execute("LOCK TABLE scheduler.scheduled_callbacks IN SHARE MODE")
        dispatching = asyncio.create_task(scheduler.dispatcher.run())
        await until(lambda: blocked(scheduler))
        drain = asyncio.create_task(scheduler.dispatcher.drain(10))
        await asyncio.wait([drain], timeout=0.1)
    await drain
    dispatching.cancel()
    assert [json.loads(message.body)["id"] for message in scheduler.broker.sent] == [str(callback)]


async def test_a_release_and_a_settlement_cannot_deadlock(scheduler: Scheduler) -> None:
    for _ in range(2):
        await scheduler.create()
    ids = "SELECT array_agg(id ORDER BY id) AS ids FROM scheduler.scheduled_callbacks"
    ordered = (await scheduler.database.fetchrow(ids))["ids"]
    for id_ in reversed(ordered):
        await scheduler.make_due(id_)
    claims = {claim.callback.id: claim.callback for claim in await scheduler.store.claim(2)}
    async with scheduler.database.transaction() as connection:
        await connection.fetch(SQL["lock"], ordered[:1])
        unpublished = [claims[id_] for id_ in reversed(ordered)]
        releasing = asyncio.create_task(scheduler.store.release(unpublished, 0.0))
        await until(lambda: blocked(scheduler))
        await connection.fetch(SQL["lock"], ordered[1:])
    await releasing
    assert len(await scheduler.dispatch()) == 2


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


async def blocked(scheduler: Scheduler) -> bool:
    """Return whether a statement waits for a lock."""
    row = await scheduler.database.fetchrow("SELECT count(*) AS n FROM pg_locks WHERE NOT granted")
    return bool(row["n"])


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


async def test_a_claim_reads_only_the_index_of_due_times(scheduler: Scheduler) -> None:
    await scheduler.database.execute(
        """
        WITH created AS (
            INSERT INTO scheduler.callback_requests
                (id, client_id, created_at, context, message, format, lease, stop_after)
            SELECT gen_random_uuid(), '', now(), 'null', NULL, 'event', 60, 60
            FROM generate_series(1, 50000)
            RETURNING id
        )
        INSERT INTO scheduler.scheduled_callbacks
        SELECT id, '', t, t, 1, 'scheduled', false, false, 0, 1, 0, 0, 0
        FROM (SELECT id, now() + (row_number() OVER () - 20) * interval '1 s' AS t FROM created) c
        """
    )
    await scheduler.database.execute(
        "ANALYZE scheduler.scheduled_callbacks, scheduler.callback_requests"
    )
    sql = CLAIM_DUE.replace("$1", "'1970-01-01'").replace("$2", "500").replace("$3", "15")
    plan = "\n".join(row[0] for row in await scheduler.database.fetch("EXPLAIN " + sql))
    assert "Index Scan using scheduled_callbacks_next_at" in plan
    assert "Index Scan using scheduled_callbacks_lease" in plan
    assert "Seq Scan" not in plan, plan


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


async def test_row_23_two_schedulers_never_claim_the_same_callback(database_url: str) -> None:
    async with schedulers(database_url, 2, batch=50) as (one, two):
        callbacks = [{"url": URL, "delay": 60}] * 1000
        items = (await one.request("CreateCallbacks", callbacks=callbacks))["items"]
        await one.database.execute("UPDATE scheduler.scheduled_callbacks SET next_at = now()")

        async def work(each: Scheduler) -> int:
            total = 0
            while count := await each.dispatcher.run_once(50):
                total += count
            return total

        claimed = await asyncio.gather(work(one), work(two))
        for each in (one, two):
            await each.dispatcher.drain(10)
        sent = [json.loads(m.body)["id"] for each in (one, two) for m in each.broker.sent]
        assert sorted(sent) == sorted(item["id"] for item in items)
        assert min(claimed) > 0


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
