"""When callbacks are due: counts by time with any number of callbacks, and next occurrences."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.scheduler import due_times
from services.scheduler.due_times import SQL
from services.scheduler.requests import MAX_CONCURRENT, MAX_COUNTS, MAX_WAITING_COUNTS
from shared.amqp.rpc import failure_of
from shared.contracts.requests import FailureCode
from shared.resilience.turns import BusyError
from tests.fakes.scheduling import Scheduler, attempt_failed, delivered, schedulers
from tests.fakes.waiting import until

# Tomorrow, so that nothing falls due during the tests.
NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url) as (one,):
        yield one


async def fill(scheduler: Scheduler, client: str, count: int, since: datetime) -> None:
    """Add callbacks of a client that are due one second after the other."""
    await scheduler.database.execute(
        "INSERT INTO scheduler.scheduled_callbacks (id, client_id, run_at, next_at, occurrence,"
        " status, in_flight, cancel_requested, dispatch, first_dispatch, main_retries,"
        " earlier_attempts, dispatch_attempts)"
        " SELECT gen_random_uuid(), $1, at, at, 1, 'scheduled', false, false, 0, 1, 0, 0, 0"
        " FROM generate_series($2::timestamptz, $2 + ($3 - 1) * interval '1 s', '1 s') AS at",
        *(client, since, count),
    )


def bounds(*hours: float) -> list[str]:
    return [(NOW + hour * HOUR).isoformat() for hour in hours]


async def counted(scheduler: Scheduler, client: str | None, *hours: float) -> Sequence[Any]:
    found = await scheduler.request("CountDue", client, bounds=bounds(*hours))
    assert [datetime.fromisoformat(each["since"]) for each in found["items"]] == [
        NOW + hour * HOUR for hour in hours[:-1]
    ]
    return [(each["callbacks"], each["estimated"]) for each in found["items"]]


async def test_s7_the_callbacks_of_a_client_are_counted_by_time(scheduler: Scheduler) -> None:
    for minutes in (-90 - 24 * 60, 10, 20, 70, 1000):
        run_at = (NOW + timedelta(minutes=minutes)).isoformat()
        await scheduler.create("shop", run_at=run_at)
    await scheduler.create("bank", run_at=(NOW + HOUR / 2).isoformat())
    await scheduler.create(run_at=(NOW + HOUR / 2).isoformat())
    # One that was due is in flight. It is counted again where its main retry is.
    assert await counted(scheduler, "shop", -10_000, 0, 1, 2, 3) == [
        *((0, False), (2, False), (1, False), (0, False))
    ]
    assert await counted(scheduler, "bank", -1, 0, 1) == [(0, False), (1, False)]
    assert await counted(scheduler, None, 0, 1) == [(1, False)]
    # A bound belongs to the span that it begins.
    assert await counted(scheduler, "bank", 0, 0.5, 1) == [(0, False), (1, False)]


async def test_s7_a_count_reads_a_bounded_part_of_one_index(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the callbacks of other clients nor those above the limit are read."""
    await fill(scheduler, "shop", 6000, NOW)
    await fill(scheduler, "bank", 10, NOW)
    await scheduler.database.execute("VACUUM ANALYZE scheduler.scheduled_callbacks")
    sql = SQL["counts"].replace("$4", "100")
    for client, since, scanned in (
        ("shop", NOW, 100),
        ("shop", NOW - 2 * HOUR, 100),  # nothing is due in this span, and much after it
        ("bank", NOW, 10),
    ):
        plan = await scheduler.database.fetch(
            f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {sql}",
            *(client, [since], [since + HOUR]),
        )
        lines = [row[0] for row in plan]
        [scan] = [number for number, line in enumerate(lines) if " on scheduled_callbacks " in line]
        assert "Index Only Scan using scheduled_callbacks_of_client" in lines[scan], lines
        assert f"rows={scanned} " in lines[scan].replace(".00", ""), lines
        read = next(line for line in lines[scan:] if "Buffers:" in line)
        # The index of all has 30 pages or more.
        assert sum(map(int, re.findall(r"=(\d+)", read))) <= 8, lines

    monkeypatch.setattr(due_times, "MAX_COUNT", 100)
    (first, estimated), second = await counted(scheduler, "shop", 0, 1, 2)
    assert estimated
    assert 3000 < first < 4200
    assert second[1]
    assert await counted(scheduler, "bank", 0, 1) == [(10, False)]


@pytest.mark.parametrize(
    "wrong", [[], [NOW], [NOW, NOW], [NOW, NOW - HOUR], [NOW + n * HOUR for n in range(62)]]
)
async def test_s7_bounds_are_few_and_ascend(scheduler: Scheduler, wrong: list[datetime]) -> None:
    found = await scheduler.request("CountDue", bounds=[each.isoformat() for each in wrong])
    assert found["errors"][0]["field"] == "bounds"


async def occurrences(scheduler: Scheduler, callback: object, client: str | None = None) -> Any:
    found = await scheduler.request("ListOccurrences", client, id=str(callback))
    return [datetime.fromisoformat(each) for each in found["items"]] if "items" in found else found


@asynccontextmanager
async def counts_that_wait(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, number: int
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Start counts of which the first waits for a lock of the database."""
    lock = 7
    held = f"(SELECT pg_advisory_xact_lock_shared({lock}) IS NOT NULL)"
    slow = f"SELECT * FROM ({SQL['counts']}) AS found WHERE {held}"  # noqa: S608 - fixed
    monkeypatch.setattr(due_times, "SQL", {**SQL, "counts": slow})
    async with scheduler.database.transaction() as holder:
        await holder.execute(f"SELECT pg_advisory_xact_lock({lock})")
        counts = [asyncio.create_task(counted(scheduler, "shop", 0, 1)) for _ in range(number)]
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await until(lambda: holder.fetchval(waiting))
        yield counts
    for count in counts:
        count.cancel()
    await asyncio.gather(*counts, return_exceptions=True)


async def test_s7_counts_do_not_delay_other_requests(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = await scheduler.create("shop")
    async with counts_that_wait(scheduler, monkeypatch, 2 * MAX_CONCURRENT) as counts:
        status = asyncio.create_task(scheduler.status(id_, "shop"))
        first, _ = await asyncio.wait([status, *counts], return_when=asyncio.FIRST_COMPLETED)
        assert first == {status}
        assert (await status)["status"] == "scheduled"


async def test_s7_counts_that_cannot_run_soon_hold_no_place_among_the_requests(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request that waits takes a place in the prefetch window from all others."""

    async def check_that_none_may_wait() -> None:
        with pytest.raises(BusyError) as busy:
            await counted(scheduler, "shop", 0, 1)
        assert failure_of(busy.value).code is FailureCode.UNAVAILABLE

    full = MAX_COUNTS + MAX_WAITING_COUNTS
    async with counts_that_wait(scheduler, monkeypatch, full) as counts:
        await check_that_none_may_wait()
        # One that has given up leaves its place to another.
        given_up = counts.pop()
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        counts.append(asyncio.create_task(counted(scheduler, "shop", 0, 1)))
        await asyncio.sleep(0)
        await check_that_none_may_wait()
    assert await counted(scheduler, "shop", 0, 1)


async def test_s7_the_next_ten_occurrences_of_a_callback_are_listed(scheduler: Scheduler) -> None:
    run_at = NOW + HOUR
    daily = await scheduler.create(
        run_at=run_at.isoformat(), repeat={"cron": "30 6 * * *", "timezone": "Europe/Berlin"}
    )
    found = await occurrences(scheduler, daily)
    assert len(found) == 10
    assert found[0] > NOW
    assert all((at.minute, at.second) == (30, 0) for at in found)
    status = await scheduler.status(daily)
    assert datetime.fromisoformat(status["run_at"]) == found[0]
    assert status["repeat"] == {
        "every": None,
        "cron": "30 6 * * *",
        "timezone": "Europe/Berlin",
        "until": None,
        "count": None,
    }

    every = {"every": 60, "count": 4}
    few = await scheduler.create("shop", run_at=run_at.isoformat(), repeat=every)
    expected = [run_at + timedelta(minutes=n) for n in range(4)]
    assert await occurrences(scheduler, few, "shop") == expected
    assert (await scheduler.status(few, "shop"))["repeat"]["every"] == 60
    # The one under way is not listed.
    await scheduler.make_due(few)
    await scheduler.dispatch()
    await scheduler.settle(attempt_failed(f"{few}.1"))
    assert await occurrences(scheduler, few, "shop") == expected[1:]
    await scheduler.settle(delivered(f"{few}.1"))
    assert await occurrences(scheduler, few, "shop") == expected[1:]
    # Nothing follows a cancellation.
    await scheduler.request("CancelCallbacks", "shop", id=str(few))
    assert await occurrences(scheduler, few, "shop") == []


async def test_s9_occurrences_of_another_client_are_not_found(scheduler: Scheduler) -> None:
    once = await scheduler.create("shop")
    assert await occurrences(scheduler, once, "shop") == []
    assert (await scheduler.status(once, "shop"))["repeat"] is None
    for callback, client in ((once, "bank"), (once, None), (uuid4(), "shop")):
        assert (await occurrences(scheduler, callback, client))["code"] == "not_found"
