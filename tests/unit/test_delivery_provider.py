"""Urgent before bulk, limits and the circuit breaker of one provider; its token bucket."""

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.delivery import provider as module
from services.delivery.domain import Grant, Rate, take_tokens
from services.delivery.provider import RECOVERY_INTERVAL, Provider, Result
from shared.errors import InfrastructureError
from shared.registry import BULK, URGENT, Priority
from shared.resilience.lanes import INITIAL_LIMIT, Breaker


class Setup:
    """A provider with a clock that the test moves."""

    def __init__(self, *, concurrency: int = 20, rate: Rate | None = None) -> None:
        self.now = 1000.0
        self.changes: list[Breaker] = []
        self.rate = rate
        self.tokens = rate.burst if rate else 0.0
        self.provider = Provider(
            "smtp://x:25",
            concurrency=concurrency,
            take_tokens=self.take if rate else None,
            max_failures=3,
            clock=lambda: self.now,
            observe=lambda _, breaker, __: self.changes.append(breaker),
        )

    async def take(self, wanted: Mapping[Priority, int]) -> Grant:
        assert self.rate is not None
        grant = take_tokens(self.rate, self.tokens, 0.0, wanted)
        self.tokens = grant.left
        return grant

    def enqueue(self, priority: Priority, count: int) -> list["asyncio.Task[bool]"]:
        """Let so many messages enter, each in a task."""
        return [asyncio.create_task(self.provider.enter(priority)) for _ in range(count)]

    async def attempts(self, result: Result, count: int = 1) -> None:
        """Make so many attempts, one after the other."""
        for _ in range(count):
            probe = await self.provider.enter(BULK)
            self.provider.leave(result, probe=probe)

    async def places(self) -> int:
        """Return how many messages can be in flight."""
        tasks = self.enqueue(BULK, 100)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        places = sum(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(places):
            self.provider.leave(Result.NOTHING, probe=False)
        return places


async def run_ready_tasks() -> None:
    """Let all tasks run as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_n9_finding_c5_a_free_place_goes_to_an_urgent_message_first() -> None:
    setup = Setup(concurrency=1)
    assert await setup.provider.enter(BULK) is False
    bulk = setup.enqueue(BULK, 500)
    await run_ready_tasks()
    urgent = setup.enqueue(URGENT, 2)
    await run_ready_tasks()
    for task in urgent:
        setup.provider.leave(Result.WORKS, probe=False)
        await run_ready_tasks()
        assert task.done()
    assert not any(task.done() for task in bulk)
    setup.provider.drain()
    with pytest.raises(InfrastructureError, match="stopping"):
        await bulk[0]
    await asyncio.gather(*bulk, return_exceptions=True)


async def test_finding_c2_messages_in_flight_or_not_recorded_are_at_most_twice_the_places() -> None:
    setup = Setup(concurrency=3)
    tasks = setup.enqueue(BULK, 20)
    sent = 0
    for _ in range(10):
        await run_ready_tasks()
        admitted = sum(task.done() for task in tasks)
        assert admitted <= 6
        if admitted > sent:
            setup.provider.leave(Result.SENT, probe=False)
            sent += 1
    assert (admitted, sent) == (6, 6)
    setup.provider.recorded()
    await run_ready_tasks()
    assert sum(task.done() for task in tasks) == 7
    setup.provider.drain()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_cancelled_message_takes_no_place() -> None:
    setup = Setup(concurrency=1)
    assert await setup.provider.enter(BULK) is False
    cancelled, waiting = setup.enqueue(BULK, 2)
    await run_ready_tasks()
    cancelled.cancel()
    setup.provider.leave(Result.WORKS, probe=False)
    assert await waiting is False
    stopped, other = setup.enqueue(BULK, 2)
    await run_ready_tasks()
    stopped.cancel()
    setup.provider.drain()
    with pytest.raises(InfrastructureError):
        await other
    await asyncio.gather(cancelled, stopped, return_exceptions=True)


async def test_n9_finding_c5_processes_divide_the_places_and_each_has_at_least_one() -> None:
    setup = Setup(concurrency=10)
    assert await setup.places() == INITIAL_LIMIT
    await setup.attempts(Result.WORKS, 20)
    assert await setup.places() == 10
    for processes, places in ((2, 5), (3, 3), (20, 1)):
        setup.provider.divide(processes)
        assert await setup.places() == places
    setup.provider.divide(1)
    await setup.attempts(Result.WORKS, 20)
    assert await setup.places() == 10


async def test_finding_d10_the_places_are_the_connections_that_the_server_takes() -> None:
    setup = Setup()
    await setup.attempts(Result.WORKS, 20)
    for task in setup.enqueue(BULK, 6):
        await task
    setup.provider.leave(Result.BUSY, probe=False)
    for _ in range(5):
        setup.provider.leave(Result.WORKS, probe=False)
    assert await setup.places() == 5
    await setup.attempts(Result.WORKS, 20)
    assert await setup.places() == 5
    setup.now += RECOVERY_INTERVAL
    await setup.attempts(Result.WORKS, 20)
    assert await setup.places() == 6  # one more in each interval
    assert setup.changes == []


async def test_finding_d10_a_server_that_takes_no_connection_opens_the_breaker() -> None:
    setup = Setup()
    await setup.attempts(Result.BUSY, 3)
    assert setup.changes == [Breaker.OPEN]


async def test_n9_finding_c5_throttling_halves_the_places_and_opens_the_breaker() -> None:
    setup = Setup()
    await setup.attempts(Result.WORKS, 20)
    await setup.attempts(Result.THROTTLES, 2)
    assert await setup.places() == 10
    assert setup.changes == []
    setup.now += 2
    await setup.attempts(Result.THROTTLES)
    assert setup.changes == [Breaker.OPEN]


async def test_m7_an_open_breaker_lets_one_probe_through_at_a_time() -> None:
    setup = Setup()
    await setup.attempts(Result.FAILS, 3)
    waiting = setup.enqueue(BULK, 3)
    await run_ready_tasks()
    assert not any(task.done() for task in waiting)
    setup.now += 2
    [probe, *others] = [*waiting, *setup.enqueue(BULK, 1)]
    await run_ready_tasks()
    assert await probe is True
    assert not any(task.done() for task in others)
    setup.provider.leave(Result.WORKS, probe=True)
    assert [await task for task in others] == [False] * 3
    assert setup.changes == [Breaker.OPEN, Breaker.CLOSED]


async def test_n15_the_breaker_of_a_provider_that_gets_no_messages_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise its gauge would be 1, and its alert would fire, until the process ends."""
    monkeypatch.setattr(module, "ABANDONED_TIMEOUT", 0)
    used, abandoned = Setup(), Setup()
    for setup in (used, abandoned):
        await setup.attempts(Result.FAILS, 3)
        setup.now += 2
    probe = await used.provider.enter(BULK)
    await run_ready_tasks()
    assert abandoned.changes == [Breaker.OPEN, Breaker.CLOSED]
    assert await abandoned.provider.enter(BULK) is False
    assert used.changes == [Breaker.OPEN]  # an attempt is in flight
    used.provider.leave(Result.FAILS, probe=probe)
    assert used.changes == [Breaker.OPEN] * 2


async def test_n15_attempts_that_fail_after_the_breaker_has_opened_do_not_keep_it_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ABANDONED_TIMEOUT", 0)
    setup = Setup()
    for probe in [await setup.provider.enter(BULK) for _ in range(4)]:  # the breaker opens at 3
        setup.now += 0.1
        setup.provider.leave(Result.FAILS, probe=probe)
    assert setup.changes == [Breaker.OPEN]
    await run_ready_tasks()
    assert setup.changes == [Breaker.OPEN, Breaker.CLOSED]


async def test_n9_finding_c5_a_message_waits_for_a_token_and_bulk_leaves_one_for_urgent() -> None:
    setup = Setup(rate=Rate(0.001, 3))
    running = asyncio.create_task(setup.provider.run())
    bulk = setup.enqueue(BULK, 4)
    await asyncio.wait(bulk, return_when=asyncio.FIRST_COMPLETED)
    assert sum(task.done() for task in bulk) == 2
    async with asyncio.timeout(5):
        assert await setup.provider.enter(URGENT) is False
    assert sum(task.done() for task in bulk) == 2
    for task in (running, *bulk):
        task.cancel()
    await asyncio.gather(running, *bulk, return_exceptions=True)


@given(
    st.floats(0.1, 1000),
    st.floats(1, 100),
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 50), st.integers(0, 50)), max_size=50),
)
def test_n9_finding_c5_a_bucket_grants_at_most_burst_and_rate(
    per_second: float, burst: float, requests: list[tuple[float, int, int]]
) -> None:
    rate = Rate(per_second, burst)
    tokens, granted, seconds = burst, 0, 0.0
    for elapsed, urgent, bulk in requests:
        grant = take_tokens(rate, tokens, elapsed, {URGENT: urgent, BULK: bulk})
        tokens, granted, seconds = grant.left, granted + grant.tokens, seconds + elapsed
        assert 0 <= grant.tokens <= urgent + bulk
        assert grant.tokens >= min(urgent, int(tokens))
        assert granted <= burst + per_second * seconds + 1e-6
        # After the delay there is a token for what waits.
        later = take_tokens(rate, tokens, grant.delay + 1e-6, {URGENT: 1, BULK: 1})
        assert later.tokens >= 1 or grant.tokens == urgent + bulk
