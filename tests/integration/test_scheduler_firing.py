"""The scheduler on a real database: leases, misfires, recurrence, retention, trouble."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.scheduler.retention import Retention
from services.scheduler.store import SQL, partition
from shared.amqp.rpc import ANONYMOUS
from tests.fakes.scheduling import (
    ALLOWED,
    URL,
    Scheduler,
    delivered,
    ended,
    given_back,
    schedulers,
)
from tests.fakes.waiting import until


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url) as (one,):
        yield one


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
    told = [fact["fact_id"] for fact in it.broker.told("notified")]
    assert len(told) == 2  # the first may have been lost in a crash
    assert len(set(told)) == 1
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
        answer: Any = await it.handlers["CreateCallback"](ANONYMOUS, body)
        assert answer.code == "invalid", context[:20]
    for text in ("\x00", "a\x00b"):
        answer = await it.ask("ListCallbacks", group_key=text)
        assert answer["code"] == "invalid"
