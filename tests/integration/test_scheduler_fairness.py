"""A backlog of one client does not delay others, and waits where it can be cancelled."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID

import aio_pika
import pytest
from prometheus_client import REGISTRY

from services.scheduler import dispatch, metrics, operations
from services.scheduler.backlog import BacklogMonitor
from services.scheduler.store import SQL
from shared.amqp import backpressure
from shared.amqp.backpressure import COUNT_INTERVAL, CallbackQueue
from shared.amqp.publisher import OutgoingMessage
from shared.errors import InfrastructureError
from tests.fakes.scheduling import SECRETS_KEY, URL, Scheduler, finished, schedulers
from tests.fakes.service import running
from tests.fakes.waiting import until

BATCH = 50


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url, batch=BATCH) as (one,):
        yield one


async def backlog(scheduler: Scheduler, client: str, count: int) -> None:
    """Create callbacks of a client that have been due for an hour."""
    for start in range(0, count, 1000):
        callbacks = [{"url": URL, "delay": 60}] * min(1000, count - start)
        await scheduler.request("CreateCallbacks", client, callbacks=callbacks)
    await scheduler.database.execute(
        "UPDATE scheduler.scheduled_callbacks SET next_at = now() - interval '1 h'"
        " WHERE client_id = $1",
        client,
    )


def position(sent: list[OutgoingMessage], callback: UUID) -> int:
    """Return how many messages were sent before a callback."""
    return next(n for n, each in enumerate(sent) if json.loads(each.body)["id"] == str(callback))


async def dispatch_all(scheduler: Scheduler) -> None:
    # A shared claim can be smaller than a batch although others follow.
    while await scheduler.dispatcher.run_once(BATCH):
        pass
    await scheduler.dispatcher.drain(10)


async def until_sent(scheduler: Scheduler, callback: UUID) -> None:
    sent = scheduler.broker.sent
    while not any(json.loads(each.body)["id"] == str(callback) for each in sent):
        assert await scheduler.dispatcher.run_once(BATCH)
        await scheduler.dispatcher.drain(10)


async def test_n10_a_backlog_of_one_client_delays_another_by_two_batches(
    scheduler: Scheduler,
) -> None:
    await backlog(scheduler, "shop", 2000)
    sent = scheduler.broker.sent
    for _ in range(4):
        await scheduler.dispatcher.run_once(BATCH)
    for client in ("bank", None):
        callback = await scheduler.create(client)
        await scheduler.make_due(callback)
        before = len(sent)
        await until_sent(scheduler, callback)
        assert position(sent, callback) - before <= 2 * BATCH
    await dispatch_all(scheduler)
    assert len(sent) == 2002


async def test_n10_clients_with_backlogs_share_the_throughput(scheduler: Scheduler) -> None:
    for client, count in (("a", 1500), ("b", 200), ("c", 200)):
        await backlog(scheduler, client, count)
    await dispatch_all(scheduler)
    found: dict[str, int] = {}
    for message in scheduler.broker.sent[:600]:
        client = json.loads(message.body)["client_id"]
        found[client] = found.get(client, 0) + 1
    # Every second claim is shared: each client gets at least a sixth.
    assert min(found[client] for client in "abc") >= 90, found


async def test_n10_more_clients_than_a_batch_are_all_served(scheduler: Scheduler) -> None:
    clients = [f"c{n}" for n in range(3 * BATCH)]
    for client in clients:
        await backlog(scheduler, client, 2)
    await dispatch_all(scheduler)
    assert len(scheduler.broker.sent) == 2 * len(clients)


async def test_n10_the_clients_are_found_in_the_index_without_reading_their_callbacks(
    scheduler: Scheduler,
) -> None:
    await backlog(scheduler, "a", 3000)
    await backlog(scheduler, "b", 1)
    await scheduler.create("later")
    await scheduler.database.execute("VACUUM ANALYZE scheduler.scheduled_callbacks")
    assert await scheduler.store.due_clients("", 5) == (["a", "b"], "")
    # With more clients, each scan continues where the last one ended.
    assert await scheduler.store.due_clients("", 1) == (["a"], "b")
    assert await scheduler.store.due_clients("b", 1) == (["b"], "later")
    assert await scheduler.store.due_clients("later", 1) == ([], "")


async def test_n10_a_shared_claim_never_reads_the_backlog_of_another_client(
    scheduler: Scheduler,
) -> None:
    await backlog(scheduler, "shop", 3000)
    await backlog(scheduler, "bank", 10)
    await scheduler.database.execute(
        "UPDATE scheduler.scheduled_callbacks SET next_at = now() WHERE client_id = 'bank'"
    )
    await scheduler.database.execute("VACUUM ANALYZE scheduler.scheduled_callbacks")
    # Callbacks that are not due yet are not read either: their index entries have 20 pages or more.
    for _ in range(3):
        callbacks = [{"url": URL, "delay": 60 + n / 10} for n in range(1000)]
        await scheduler.request("CreateCallbacks", "bank", callbacks=callbacks)
    plan = await scheduler.database.fetch(
        f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {SQL['due_shared']}", ["bank"], 50
    )
    lines = [row[0] for row in plan]
    [scan] = [n for n, line in enumerate(lines) if "using scheduled_callbacks_of_client" in line]
    assert not any("Removed by" in line for line in lines), lines
    read = next(line for line in lines[scan:] if "Buffers:" in line)
    assert sum(map(int, re.findall(r"=(\d+)", read))) <= 5, lines


async def test_n10_more_clients_than_one_scan_finds_are_all_served(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "MAX_CLIENTS", 4)
    await backlog(scheduler, "a", 2000)
    for n in range(10):
        await scheduler.create(f"c{n}")
    await scheduler.make_due(late := await scheduler.create("d"))
    before = len(scheduler.broker.sent)
    await until_sent(scheduler, late)
    # Three scans find all the clients, and a claim of the oldest callbacks comes before each.
    assert position(scheduler.broker.sent, late) - before <= 6 * BATCH


async def test_n10_large_contexts_of_other_clients_do_not_fill_the_memory(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backlog(scheduler, "small", 1000)
    for client in ("large", "larger"):
        callbacks = [{"url": URL, "delay": 60, "context": "x" * 10_000}] * 100
        await scheduler.request("CreateCallbacks", client, callbacks=callbacks)
    await scheduler.database.execute(
        "UPDATE scheduler.scheduled_callbacks SET next_at = now() WHERE client_id LIKE 'large%'"
    )
    monkeypatch.setattr(dispatch, "MAX_BATCH_BYTES", 100_000)
    sizes: list[int] = []
    while len(sizes) < 10:
        before = len(scheduler.broker.sent)
        await scheduler.dispatcher.run_once(BATCH)
        await scheduler.dispatcher.drain(10)
        sizes.append(sum(len(each.body) for each in scheduler.broker.sent[before:]))
    # The sizes are not known before the first shared claim.
    assert sorted(sizes)[-2] <= 200_000, sizes


async def test_n10_while_the_queue_is_full_callbacks_wait_and_can_be_cancelled(
    scheduler: Scheduler,
) -> None:
    scheduler.broker.queued = 1000
    now = [await scheduler.create("shop", delay=0, group_key="g") for _ in range(3)]
    later = await scheduler.create("shop")
    await scheduler.make_due(later)
    running = asyncio.create_task(scheduler.dispatcher.run())
    try:
        await scheduler.dispatcher.wait_for_backlog()
        assert scheduler.broker.sent == []
        assert (await scheduler.status(now[0], "shop"))["status"] == "scheduled"
        cancelled = await scheduler.request("CancelCallbacks", "shop", id=str(now[0]))
        assert cancelled["result"] == "cancelled"
        scheduler.broker.queued = 0
        await until(lambda: len(scheduler.broker.sent) == 3)
    finally:
        running.cancel()


def counting(counts: list[int]) -> tuple[Callable[[], Awaitable[int]], list[int]]:
    made: list[int] = []

    async def count() -> int:
        made.append(counts[len(made)])
        if made[-1] < 0:
            raise InfrastructureError("not connected to the broker")
        return made[-1]

    return count, made


async def test_n10_the_queue_is_counted_only_near_its_limit() -> None:
    count, made = counting([0, 300, 900, -1])
    queue = CallbackQueue(count, 1000, metrics.BACKPRESSURE.set)
    for _ in range(7):
        assert await queue.room() >= 250
        queue.publishing(100)
        await asyncio.sleep(COUNT_INTERVAL)
    assert made == [0]
    queue.publishing(100)
    assert await queue.room() == 700
    queue.publishing(500)
    await asyncio.sleep(COUNT_INTERVAL)
    assert await queue.room() == 0
    await asyncio.sleep(COUNT_INTERVAL)
    # Without a count, callbacks are rather sent in an unfair order than late.
    assert await queue.room() == 1000
    assert made == [0, 300, 900, -1]


async def test_n10_other_producers_cannot_stop_scheduled_callbacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, _ = counting([1000] * 20)
    queue = CallbackQueue(count, 1000, metrics.BACKPRESSURE.set)
    assert await queue.room() == 0
    monkeypatch.setattr(backpressure, "MAX_PAUSE", 0.2)
    await asyncio.sleep(0.2)
    assert await queue.room() == 500
    monkeypatch.setattr(backpressure, "MAX_PAUSE", 60.0)
    assert await queue.room() == 0


async def test_n10_the_scheduler_leaves_a_backlog_in_the_database(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    environment = {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
        "RINGBACK_SCHEDULER_MAX_QUEUED": "200",
        "RINGBACK_SCHEDULER_BATCH": "50",
    }
    run = ("-m", "services", "run", "scheduler", "--metrics-port", "0")
    async with schedulers(database_url) as (creating,):
        with running(tmp_path, amqp_url, environment, run) as service:
            await service.ready()
            await backlog(creating, "shop", 1000)
            connection = await aio_pika.connect(amqp_url)
            async with connection:
                channel = await connection.channel()
                received: set[str] = set()
                while len(received) < 1000:
                    queue = await channel.declare_queue("callbacks", passive=True)
                    assert (queue.declaration_result.message_count or 0) <= 200 + 4 * 50
                    message = await queue.get(no_ack=True, fail=False)
                    if message is not None:
                        received.add(json.loads(message.body)["id"])


async def test_finding_a10_a_large_group_is_cancelled_in_several_requests(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "GROUP_TIME", 0.0)
    monkeypatch.setattr(operations, "GROUP_BATCH_SIZE", 40)
    ended = [await finished(scheduler, "notified", group_key="g") for _ in range(2)]
    callbacks = [{"url": URL, "delay": 60, "group_key": "g"}] * 100
    await scheduler.request("CreateCallbacks", callbacks=callbacks)
    counts: list[dict[str, int]] = []
    cursor = None
    while cursor is not None or not counts:
        response = await scheduler.request("CancelCallbacks", group_key="g", cursor=cursor)
        counts.append(response["counts"])
        cursor = response["next_cursor"]
    assert counts == [
        {"already_notified": 2, "cancelled": 38},
        {"cancelled": 40},
        {"cancelled": 22},
    ]
    assert await scheduler.store.statuses(ended)
    left = await scheduler.database.fetchrow("SELECT FROM scheduler.scheduled_callbacks")
    assert left is None


async def test_finding_a10_large_groups_leave_the_database_to_others(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create()
    members = [await scheduler.create(group_key="g") for _ in range(3)]
    async with scheduler.database.transaction() as connection:
        await connection.fetch(SQL["lock"], members)
        cancelling = [
            asyncio.create_task(scheduler.request("CancelCallbacks", group_key="g"))
            for _ in range(20)
        ]
        await asyncio.sleep(0)
        # Otherwise it would get its turn when the statements of the others time out.
        async with asyncio.timeout(3):
            assert (await scheduler.status(callback))["status"] == "scheduled"
        assert not any(each.done() for each in cancelling)
    for response in await asyncio.gather(*cancelling):
        assert response["counts"] == {"cancelled": 3}


async def test_finding_a10_a_group_waits_at_most_some_seconds_for_its_turn(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "GROUP_TIME", 0.1)
    members = [await scheduler.create(group_key="g") for _ in range(3)]
    async with scheduler.database.transaction() as connection:
        await connection.fetch(SQL["lock"], members)
        first = asyncio.create_task(scheduler.request("CancelCallbacks", group_key="g"))
        await asyncio.sleep(0)
        async with asyncio.timeout(2):
            with pytest.raises(InfrastructureError, match="other groups") as raised:
                await scheduler.request("CancelCallbacks", group_key="g")
        assert not raised.value.effect_unknown
        assert not first.done()
    assert (await first)["counts"] == {"cancelled": 3}


async def test_finding_a10_a_cursor_must_be_valid_and_belongs_to_a_group(
    scheduler: Scheduler,
) -> None:
    for wrong in (
        {"group_key": "g", "cursor": "x"},
        {"group_key": "g", "event_key": "e", "cursor": "x"},
    ):
        response = await scheduler.request("CancelCallbacks", **wrong)
        assert response["errors"][0]["field"] == "cursor"


async def test_finding_a19_a_status_does_not_read_partitions_before_its_callback(
    scheduler: Scheduler,
) -> None:
    callback = await finished(scheduler, "notified")
    await scheduler.database.execute(
        "CREATE TABLE scheduler.finished_callbacks_old PARTITION OF scheduler.finished_callbacks"
        " FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')"
    )
    try:
        sql = SQL["statuses"].replace("$1", f"ARRAY['{callback}']")
        plan = await scheduler.database.fetch(f"EXPLAIN (ANALYZE, COSTS OFF) {sql}")
    finally:
        await scheduler.database.execute("DROP TABLE scheduler.finished_callbacks_old")
    found = [row[0] for row in plan if " on finished_callbacks_old" in row[0]]
    assert found
    assert all("never executed" in line for line in found), found


async def test_finding_a19_gauges_show_how_many_callbacks_wait_and_are_due(
    scheduler: Scheduler,
) -> None:
    def value(name: str) -> float:
        return REGISTRY.get_sample_value(f"ringback_{name}") or 0.0

    await backlog(scheduler, "shop", 30)
    await scheduler.create()
    await BacklogMonitor(scheduler.store).run_once()
    assert value("schedules_waiting") == 31
    assert value("schedules_due") == 30
    assert 3600 <= value("schedule_oldest_due_seconds") < 3900
    # A count has a limit, and the estimate counts further.
    assert (await scheduler.store.backlog(10)).due == 10
    await scheduler.database.execute("VACUUM ANALYZE scheduler.scheduled_callbacks")
    assert (await scheduler.store.backlog(10)).waiting == 31
    await scheduler.dispatch()
    await BacklogMonitor(scheduler.store).run_once()
    assert value("schedules_due") == value("schedule_oldest_due_seconds") == 0


async def test_finding_a19_a_failed_attempt_changes_no_index(scheduler: Scheduler) -> None:
    callback = await scheduler.create(delay=0)
    await scheduler.dispatcher.drain(10)
    async with scheduler.database.transaction() as connection:
        await connection.execute(
            "UPDATE scheduler.scheduled_callbacks SET status = 'retrying', dispatch_attempts = 1,"
            " next_at = next_at, in_flight = in_flight, next_attempt_at = now(),"
            " last_error = 'the receiver responded with 500' WHERE id = $1",
            callback,
        )
        row = await connection.fetchrow(
            "SELECT n_tup_hot_upd FROM pg_stat_xact_user_tables"
            " WHERE relname = 'scheduled_callbacks'"
        )
    assert row["n_tup_hot_upd"] == 1
