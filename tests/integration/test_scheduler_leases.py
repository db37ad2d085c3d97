"""Leases of the scheduler: one process claims a callback, and others only after its lease."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest

from services.scheduler.store import CLAIM_DUE, SQL
from tests.fakes.scheduling import URL, Scheduler, blocked, delivered, dispatch_failed, schedulers
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
