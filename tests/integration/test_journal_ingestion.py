"""The journal stores each fact of the stream exactly once, on a real broker and database."""

import asyncio
import math
import random
import string
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import asyncpg
import pytest
from aiormq.abc import AbstractChannel
from pydantic import BaseModel

from deploy.local.broker import Broker
from deploy.local.database import Database as Server
from services.journal.dead.index import LetterIndex
from services.journal.partitions import Partitions, partition_name
from services.journal.retention import Retention
from services.journal.store import Missed, Position, Store, SupersededError
from services.journal.targets.recording import record_breakers, record_lanes
from shared.amqp.connection import connect
from shared.amqp.declare import TopologyMismatchError
from shared.amqp.publisher import Publisher
from shared.contracts.facts import CallbackDead
from shared.contracts.journal_facts import BreakerOpened, LaneFull, LetterDead
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.topology import JOURNAL_FACTS
from tests.fakes.journal import (
    RETENTION,
    TARGET,
    declared,
    delivered,
    empty_journal,
    fact_publisher,
    publish,
    raw,
    running_journal,
)
from tests.fakes.waiting import until

# Facts that fill the smallest stream more than twice: messages of 64 kB, 4 MiB in the stream.
SMALL_BACKLOG = 1000
LARGE_ERROR = "x" * 64_000


@pytest.fixture
async def publisher(amqp_url: str, database_url: str) -> AsyncIterator[Publisher]:
    await empty_journal(database_url)
    async with fact_publisher(amqp_url, declared()) as client:
        yield client


async def test_n6_facts_are_stored_in_order_with_the_figures_of_their_target(
    publisher: Publisher, amqp_url: str, database_url: str
) -> None:
    before, after = ([delivered() for _ in range(7)] for _ in range(2))
    failed = CallbackDead(
        **before[0].model_dump(exclude={"type", "status"}), reason="gone", status=410
    )
    await publish(publisher, before)
    async with running_journal(amqp_url, database_url) as journal:
        await journal.has(before)
        await publish(publisher, after)
        await journal.has([*before, *after])
        await publish(publisher, [failed])
        await until(lambda: _minute_total(journal.rows, 15))
        [stored] = await journal.database.fetch(
            "SELECT * FROM journal.entries WHERE outcome = 'dead'"
        )
    assert (stored["kind"], stored["status_code"], stored["reason"]) == ("attempt", 410, "gone")


async def _minute_total(rows: Any, expected: int) -> bool:
    minutes = [row for row in await rows("minutes") if row["target"] == TARGET]
    counted = sum(row["delivered"] + row["failed"] for row in minutes)
    assert counted == sum(sum(row["buckets"]) for row in minutes)
    return bool(counted == expected and sum(row["failed"] for row in minutes) == 1)


async def test_n6_of_two_journals_one_stores_and_the_other_takes_over(
    publisher: Publisher, amqp_url: str, database_url: str
) -> None:
    first, second, third = ([delivered() for _ in range(5)] for _ in range(3))
    async with running_journal(amqp_url, database_url) as waiting:
        async with running_journal(amqp_url, database_url) as other:
            await publish(publisher, first)
            await other.has(first)
            await until(lambda: waiting.health.ready and other.health.ready)
            await publish(publisher, second)
            await other.has([*first, *second])
        await publish(publisher, third)
        await waiting.has([*first, *second, *third])


class CommittedStore(Store):
    """Its process dies after the commit: what it has stored is not acknowledged."""

    async def add(self, *args: Any) -> int:
        await super().add(*args)
        await asyncio.Event().wait()
        return 0


class UncommittedStore(Store):
    """Its process dies before the commit."""

    async def add(self, facts: Sequence[BaseModel], *args: Any) -> int:
        async def die(_connection: Any, _facts: Sequence[BaseModel]) -> None:
            await asyncio.Event().wait()

        self._recorders = (die,)
        return await super().add(facts, *args)


class UnmovedStore(Store):
    """Its process dies before the position has moved."""

    async def _advance(self, *_: Any) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("store", [CommittedStore, UncommittedStore, UnmovedStore])
async def test_n6_a_kill_on_either_side_of_the_commit_stores_each_fact_once(
    publisher: Publisher, amqp_url: str, database_url: str, store: type[Store]
) -> None:
    facts = [delivered() for _ in range(20)]
    await publish(publisher, facts)
    async with running_journal(amqp_url, database_url, store=store) as dying:
        if store is CommittedStore:
            await dying.has(facts)
        else:
            await until(lambda: _in_transaction(database_url))
    async with running_journal(amqp_url, database_url) as journal:
        await journal.has(facts)
        more = [delivered()]
        await publish(publisher, more)
        await journal.has([*facts, *more])


async def _in_transaction(database_url: str) -> bool:
    connection = await asyncpg.connect(database_url)
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE state = 'idle in transaction' AND datname = current_database()"
        )
    finally:
        await connection.close()
    return count > 0


async def test_n6_a_process_that_was_suspended_stores_nothing_twice(
    publisher: Publisher, amqp_url: str, database_url: str
) -> None:
    facts = [delivered()]
    await publish(publisher, facts)
    async with running_journal(amqp_url, database_url) as journal:
        await journal.has(facts)
        with pytest.raises(SupersededError):
            await journal.store.add(facts, Position(-1, None), Position(0, "m"))
        await journal.has(facts)


async def test_n6_a_message_that_was_published_twice_is_stored_once(
    publisher: Publisher, amqp_url: str, database_url: str
) -> None:
    facts = [delivered()]
    message = raw(f'{{"facts": [{facts[0].model_dump_json()}]}}')
    async with running_journal(amqp_url, database_url) as journal:
        await publisher.publish_all([message, message])
        await journal.has(facts)
        await publisher.publish_all([message])
        more = [delivered()]
        await publish(publisher, more)
        await journal.has([*facts, *more])


async def test_n12_unknown_and_invalid_facts_stop_nothing(
    publisher: Publisher, amqp_url: str, database_url: str
) -> None:
    good = [delivered() for _ in range(3)]
    poison = delivered(trace_id="\0")  # PostgreSQL refuses it
    later = good[1].model_dump_json(exclude={"type"})[1:]
    await publish(publisher, good[:1])
    await publisher.publish_all(
        [
            raw('{"facts": [{"type": "callback.later"}, {"type": "callback.delivered"}]}'),
            raw("not JSON"),
            raw(f'{{"facts": [{{"type": "callback.delivered", "later": 1, {later}]}}'),
            raw(f'{{"facts": [{poison.model_dump_json()}]}}'),
        ]
    )
    await publish(publisher, good[2:])
    async with running_journal(amqp_url, database_url) as journal:
        await journal.has(good)
        assert poison.callback_id not in await journal.ids()


def _texts_too_long_for_an_index() -> list[BaseModel]:
    text = "".join(random.Random(1).choices(string.ascii_letters, k=9000))
    dead = {"fact_id": "f", "at": datetime.now(UTC), "reason": "r", "queue": "callbacks"}
    return [
        delivered(target=text),
        delivered(client_id=text),
        delivered(trace_id=text),
        delivered(callback_id=text),
        LetterDead(**dead, letter_id="a", logical_id="a", target=text),
        LetterDead(**dead | {"queue": text}, letter_id="b", logical_id="b"),
    ]


def _numbers_out_of_range() -> list[BaseModel]:
    now = datetime.now(UTC)
    breaker = {"fact_id": "f", "target": TARGET, "process": "p"}
    return [
        delivered(attempt=10**30),
        delivered(status=10**10),
        delivered(dispatch=-(10**30)),
        delivered(duration=math.inf),
        delivered(duration=-math.inf),
        delivered(duration=math.nan),
        delivered(at=datetime.max.replace(tzinfo=timezone(-timedelta(hours=12)))),
        delivered(at=datetime.min.replace(tzinfo=timezone(timedelta(hours=12)))),
        BreakerOpened(**breaker, at=now, open_seconds=1e300),
        BreakerOpened(**breaker, at=now, open_seconds=math.inf),
        BreakerOpened(**breaker, at=now, open_seconds=math.nan),
        LaneFull(**breaker, at=now, reason="lane\0full", in_flight=1, limit=1),
        LaneFull(**breaker, at=now, reason="lane full", in_flight=1 << 40, limit=1),
        BreakerOpened(**breaker, at=datetime.max.replace(tzinfo=UTC), open_seconds=60),
    ]


@pytest.mark.parametrize("poison", [_texts_too_long_for_an_index, _numbers_out_of_range])
async def test_n12_no_value_of_a_fact_stops_the_journal(
    publisher: Publisher, amqp_url: str, database_url: str, poison: Any
) -> None:
    recorders = (LetterIndex(Database(database_url, name="t", health=Health())).record,)
    for fact in poison():
        good = [delivered()]
        # One message: what cannot be stored costs no other fact.
        other = delivered()
        bodies = ",".join(each.model_dump_json() for each in (other, fact, *good))
        await publisher.publish_all([raw(f'{{"facts": [{bodies}]}}')])
        good = [other, *good]
        async with running_journal(
            amqp_url, database_url, recorders=(*recorders, record_breakers, record_lanes)
        ) as journal:
            await journal.has(good)


async def test_n6_what_the_stream_has_dropped_is_a_gap(amqp_url: str, database_url: str) -> None:
    await empty_journal(database_url)
    table = declared(SMALL_BACKLOG)
    kept = [delivered()]
    async with fact_publisher(amqp_url, table) as publisher:
        await publish(publisher, kept)
        async with running_journal(amqp_url, database_url, table=table) as journal:
            await journal.has(kept)
        published = await _overflow(publisher)
        last = [delivered()]
        await publish(publisher, last)
        async with running_journal(amqp_url, database_url, table=table) as journal:
            await journal.has([*kept, *last])
            [gap] = await journal.rows("gaps")
            stored = len(await journal.ids())
    assert (gap["first_offset"], gap["reason"]) == (1, "backlog_exceeded")
    assert gap["last_offset"] == gap["first_offset"] + gap["messages"] - 1
    # RabbitMQ's own records, one in each segment, count as missed messages.
    assert published + 2 <= stored + gap["messages"] <= published + 2 + 20


async def _overflow(publisher: Publisher) -> int:
    """Publish more than the stream keeps, and return the number of messages."""
    messages = 200
    for _ in range(messages // 20):
        await publisher.publish_all(
            raw(f'{{"facts": [{delivered(reference=LARGE_ERROR).model_dump_json()}]}}')
            for _ in range(20)
        )
    return messages


async def test_n6_a_stream_that_was_replaced_is_read_from_its_beginning(
    publisher: Publisher, amqp_url: str, database_url: str
) -> None:
    before, after = ([delivered() for _ in range(4)] for _ in range(2))
    for fact in before:
        await publish(publisher, [fact])
    async with running_journal(amqp_url, database_url) as journal:
        await journal.has(before)
    async with connect(amqp_url, name="test") as broker:
        channel: AbstractChannel = await broker.connection.channel()
        await channel.queue_delete(JOURNAL_FACTS)
    async with (
        fact_publisher(amqp_url, declared()) as new_publisher,
        running_journal(amqp_url, database_url) as journal,
    ):
        for fact in after:
            await publish(new_publisher, [fact])
        await journal.has([*before, *after], within=60)
        [gap] = await journal.rows("gaps")
    assert (gap["reason"], gap["messages"]) == ("stream_replaced", None)


@pytest.mark.slow
async def test_n6_a_restart_of_the_broker_loses_no_fact(
    own_broker: Broker, database_url: str
) -> None:
    await empty_journal(database_url)
    before, after = ([delivered() for _ in range(20)] for _ in range(2))
    async with (
        fact_publisher(own_broker.url, declared()) as publisher,
        running_journal(own_broker.url, database_url) as journal,
    ):
        await publish(publisher, before)
        await journal.has(before)
        await asyncio.to_thread(own_broker.sync)
        own_broker.kill()
        await until(lambda: not journal.health.ready)
        await asyncio.to_thread(own_broker.start)
        await publisher.ready()
        await publish(publisher, after)
        await journal.has([*before, *after], within=60)
        assert not await journal.rows("gaps")


async def test_n6_a_restart_of_the_database_loses_no_fact(
    publisher: Publisher, amqp_url: str, own_database: Server
) -> None:
    await empty_journal(own_database.url)
    before, during, after = ([delivered() for _ in range(20)] for _ in range(3))
    async with running_journal(amqp_url, own_database.url) as journal:
        await publish(publisher, before)
        await journal.has(before)
        own_database.stop(immediate=True)
        await publish(publisher, during)
        await until(lambda: not journal.health.ready)
        own_database.start()
        await publish(publisher, after)
        # The commits are asynchronous: the database may have lost the first batch, with its offset.
        await journal.has([*before, *during, *after], within=60)


async def test_n6_partitions_are_created_for_late_facts_and_dropped_after_the_retention(
    publisher: Publisher, amqp_url: str, database_url: str
) -> None:
    now = datetime.now(UTC)
    late = delivered(at=now - timedelta(days=3))
    old = delivered(at=now - RETENTION + timedelta(hours=1))
    expired = delivered(at=now - RETENTION - timedelta(days=1))
    async with running_journal(amqp_url, database_url) as journal:
        await publish(publisher, [expired, old, late])
        await journal.has([old, late])
        assert expired.callback_id not in await journal.ids()
        partitions = Partitions(journal.database)
        dropped = await Retention(journal.database, partitions, timedelta(days=2)).run_once()
        assert {partition_name("entries", each.at.date()) for each in (old, late)} <= set(dropped)
        assert await journal.ids() == []
        assert not await journal.rows("minutes")


async def test_row_14_a_changed_backlog_is_named_at_the_start(
    publisher: Publisher, amqp_url: str, database_url: str
) -> None:
    await publisher.ready()
    async with running_journal(amqp_url, database_url, table=declared(2000)) as journal:
        with pytest.raises(TopologyMismatchError, match=r"'journal.facts' .*JOURNAL_BACKLOG"):
            await journal.task


async def test_n6_a_gap_is_counted_in_messages() -> None:
    assert Missed(3, 9).messages == 7
