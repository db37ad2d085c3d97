"""The batcher, and the scheduler's database clock."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.scheduler.clock import DatabaseClock
from shared.errors import InfrastructureError
from shared.resilience.batching import Batcher


async def test_items_added_during_a_batch_form_the_next_batches() -> None:
    batches: list[list[int]] = []
    proceed = asyncio.Semaphore(0)

    async def work(items: list[int]) -> list[int]:
        batches.append(items)
        await proceed.acquire()
        return [item * 10 for item in items]

    batcher = Batcher(work, max_size=3)
    running = asyncio.create_task(batcher.run())
    adding = [asyncio.create_task(batcher.add(number)) for number in range(1)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    adding += [asyncio.create_task(batcher.add(number)) for number in range(1, 6)]
    for _ in range(3):
        proceed.release()
    assert await asyncio.gather(*adding) == [0, 10, 20, 30, 40, 50]
    assert batches == [[0], [1, 2, 3], [4, 5]]
    running.cancel()


async def test_items_of_an_interval_form_one_batch() -> None:
    batches: list[list[int]] = []

    async def work(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    batcher = Batcher(work, max_size=10, interval=0.5)
    running = asyncio.create_task(batcher.run())
    await batcher.add(0)  # the first one does not wait
    for number in (1, 2, 3):
        adding = asyncio.create_task(batcher.add(number))
        await asyncio.sleep(0)
    await adding
    assert batches == [[0], [1, 2, 3]]
    running.cancel()


async def test_an_infrastructure_error_is_raised_to_all_callers_and_the_next_batch_works() -> None:
    async def work(items: list[int]) -> list[int]:
        if 0 in items:
            raise InfrastructureError("lost")
        return items

    batcher = Batcher(work, max_size=10)
    running = asyncio.create_task(batcher.run())
    results = await asyncio.gather(*map(batcher.add, (0, 1)), return_exceptions=True)
    assert [str(result) for result in results] == ["lost", "lost"]
    assert await batcher.add(2) == 2
    running.cancel()


async def test_an_item_that_cannot_be_processed_fails_no_other() -> None:
    batches: list[list[int]] = []

    async def work(items: list[int]) -> list[int]:
        batches.append(items)
        if 0 in items:
            raise ValueError("invalid")
        return items

    batcher = Batcher(work, max_size=10)
    running = asyncio.create_task(batcher.run())
    results = await asyncio.gather(*map(batcher.add, (1, 0, 2)), return_exceptions=True)
    assert [str(result) for result in results] == ["1", "invalid", "2"]
    assert batches == [[1, 0, 2], [1], [0, 2], [0], [2]]
    running.cancel()


async def test_items_of_cancelled_callers_are_skipped() -> None:
    seen: list[int] = []

    async def work(items: list[int]) -> list[int]:
        seen.extend(items)
        return items

    batcher = Batcher(work, max_size=10)
    cancelled = asyncio.create_task(batcher.add(1))
    await asyncio.sleep(0)
    cancelled.cancel()
    running = asyncio.create_task(batcher.run())
    assert await batcher.add(2) == 2
    assert seen == [2]
    running.cancel()


async def test_finish_pending_waits_only_for_items_added_before() -> None:
    proceed = asyncio.Event()

    async def work(items: list[int]) -> list[int]:
        await proceed.wait()
        return items

    batcher = Batcher(work, max_size=1)
    running = asyncio.create_task(batcher.run())
    await batcher.finish_pending()
    before = [asyncio.create_task(batcher.add(number)) for number in range(3)]
    await asyncio.sleep(0)
    waiting = asyncio.create_task(batcher.finish_pending())
    await asyncio.sleep(0)
    assert not waiting.done()
    proceed.set()
    await waiting
    assert all(each.done() for each in before)
    running.cancel()


# Row 24.
@pytest.mark.parametrize("shift", [timedelta(hours=1), timedelta(hours=-1)])
def test_row_24_the_clock_follows_the_database_clock_when_it_jumps(shift: timedelta) -> None:
    monotonic = 1000.0
    clock = DatabaseClock(lambda: monotonic)
    assert not clock.synced
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    clock.sync(noon, clock.start())
    monotonic += 5
    assert clock.now() == noon + timedelta(seconds=5)
    assert clock.seconds_until(noon + timedelta(seconds=8)) == pytest.approx(3)
    clock.sync(noon + shift, clock.start())
    assert clock.now() == noon + shift
