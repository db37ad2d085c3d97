"""Lanes and circuit breakers by example. test_lanes_every_order.py tests all orders of events."""

import pytest

from shared.errors import DeferredError, InfrastructureError
from shared.resilience import lanes as module
from shared.resilience.lanes import INITIAL_LIMIT, MAX_DEFERRAL, Breaker
from tests.fakes.lanes import LanesUnderTest, run_ready_tasks

A, B, C = "https://a.example:443", "https://b.example:443", "https://c.example:443"


@pytest.fixture
def it() -> LanesUnderTest:
    return LanesUnderTest()


async def open_breaker(it: LanesUnderTest, target: str) -> None:
    for _ in range(it.max_failures):
        await it.attempt(target, alive=False)


async def test_a_lane_starts_narrow_and_each_response_widens_it(it: LanesUnderTest) -> None:
    lane = it.lanes.lane(A)
    assert lane.limit == INITIAL_LIMIT
    await it.attempt(A, alive=True)
    assert lane.limit == INITIAL_LIMIT + 1
    await it.prove(A, duration=0.01)
    assert lane.limit == it.max_in_flight
    await it.attempt(A, alive=False)
    assert lane.limit == it.max_in_flight // 2
    await it.attempt(A, alive=None)
    assert lane.limit == it.max_in_flight // 2


async def test_the_breaker_opens_only_after_consecutive_failures(it: LanesUnderTest) -> None:
    await it.attempt(A, alive=False)
    await it.attempt(A, alive=False)
    await it.attempt(A, alive=True)
    await it.attempt(A, alive=False)
    await it.attempt(A, alive=False)
    assert it.changes == []
    await it.attempt(A, alive=False)
    assert it.changes == [(A, Breaker.OPEN, 2.0)]
    assert str(await it.deferred(A)) == "breaker open"


async def test_failures_far_apart_are_not_consecutive(it: LanesUnderTest) -> None:
    for _ in range(10):
        await it.attempt(A, alive=False)
        it.time.now += module.FAILURE_LIFETIME + 1
    assert it.changes == []


async def test_failed_probes_double_the_open_time_up_to_a_minute_and_one_response_closes(
    it: LanesUnderTest,
) -> None:
    await open_breaker(it, A)
    open_times = [open_time for _, _, open_time in it.changes]
    for _ in range(7):
        it.time.now += open_times[-1] - 0.01
        await it.deferred(A)
        it.time.now += 0.01
        assert await it.attempt(A, alive=False)
        open_times.append(it.changes[-1][2])
    assert open_times == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    it.time.now += 60
    assert await it.attempt(A, alive=True)
    assert it.changes[-1] == (A, Breaker.CLOSED, 0.0)
    assert not await it.attempt(A, alive=True)


async def test_queued_messages_are_deferred_when_the_breaker_opens() -> None:
    it = LanesUnderTest(max_failures=1)
    lane = it.lanes.lane(A)
    await it.enter_times(A, INITIAL_LIMIT)
    queued = it.enqueue(A, 2)
    await run_ready_tasks()
    it.lanes.leave(lane, alive=False)
    await run_ready_tasks()
    for task in queued:
        error = task.exception()
        assert isinstance(error, DeferredError)
        assert (str(error), error.delay) == ("breaker open", 2.0)
    assert lane.in_flight == INITIAL_LIMIT - 1


async def test_an_open_breaker_admits_one_probe_at_a_time(it: LanesUnderTest) -> None:
    await open_breaker(it, A)
    it.time.now += 2
    lane = it.lanes.lane(A)
    assert await it.enter(A)
    await it.deferred(A)
    it.lanes.leave(lane, probe=True, alive=None)  # no request was sent
    assert await it.enter(A)
    await it.deferred(A)


async def test_an_open_breaker_does_not_affect_other_targets(it: LanesUnderTest) -> None:
    await open_breaker(it, A)
    assert not await it.attempt(B, alive=True)


@pytest.mark.parametrize(
    ("deferrals", "delay"), [(0, 1), (1, 2), (5, 32), (9, 300), (10**15, MAX_DEFERRAL)]
)
async def test_each_deferral_of_a_message_is_longer(
    it: LanesUnderTest, deferrals: int, delay: float
) -> None:
    await it.prove(A, duration=10)
    await it.enter_times(A, it.max_in_flight)
    error = await it.deferred(A, deferrals)
    assert (str(error), error.delay) == ("lane full", delay)


async def test_an_open_breaker_defers_at_least_until_it_closes(it: LanesUnderTest) -> None:
    await open_breaker(it, A)
    assert (await it.deferred(A)).delay == 2
    assert (await it.deferred(A, deferrals=3)).delay == 8
    it.time.now += 1.5
    assert (await it.deferred(A)).delay == 1


async def test_a_queue_holds_as_many_as_the_target_serves_in_half_a_second() -> None:
    it = LanesUnderTest(max_in_flight=10)
    await it.prove(A, duration=0.1)  # ten at a time: 100 a second
    await it.enter_times(A, 10)
    queued = it.enqueue(A, 60)
    await run_ready_tasks()
    assert [task.done() for task in queued] == [False] * 50 + [True] * 10
    it.lanes.drain()
    await run_ready_tasks()
    assert all(task.exception() for task in queued)


async def test_a_stalled_queue_is_deferred_until_the_target_responds() -> None:
    it = LanesUnderTest()
    lane = it.lanes.lane(A)
    await it.prove(A, duration=0.01)
    await it.enter_times(A, it.max_in_flight)
    queued = it.enqueue(A, 3)
    await run_ready_tasks()
    it.time.now += module.STALL_TIMEOUT
    it.lanes.defer_stalled()
    it.lanes.leave(lane, alive=True, duration=0.01)  # progress: the timeout starts again
    await run_ready_tasks()
    it.time.now += module.STALL_TIMEOUT
    it.lanes.defer_stalled()
    await run_ready_tasks()
    assert [task.done() for task in queued] == [True, False, False]
    it.time.now += 0.01
    it.lanes.defer_stalled()
    await run_ready_tasks()
    assert [str(task.exception()) for task in queued[1:]] == ["lane stalled"] * 2
    assert str(await it.deferred(A)) == "lane stalled"  # no new queue starts
    assert lane.in_flight == it.max_in_flight
    it.lanes.leave(lane, alive=True, duration=0.01)
    await it.enter(A)
    [again] = it.enqueue(A, 1)
    await run_ready_tasks()
    assert not again.done()
    it.lanes.drain()
    await run_ready_tasks()
    assert again.exception()


async def test_unproven_targets_together_hold_half_of_the_slots() -> None:
    it = LanesUnderTest(prefetch=20)
    for number in range(5):
        await it.enter_times(f"https://{number}.example:443", 2)
    error = await it.deferred("https://3.example:443", deferrals=9)
    assert str(error) == "too many unproven targets"
    assert error.delay == module.STALL_DELAY  # caused by other targets: it does not grow
    it.lanes.leave(it.lanes.lane("https://3.example:443"), alive=True)
    assert not await it.enter("https://3.example:443")  # it has responded
    await it.enter("https://4.example:443")


async def test_the_first_request_to_a_new_target_gets_a_place_beside_targets_that_hang() -> None:
    it = LanesUnderTest(prefetch=16)
    for number in range(4):
        await it.enter_times(f"https://{number}.example:443", 2)
    for number in range(4, 8):
        await it.enter(f"https://{number}.example:443")
    await it.deferred(A)  # a quarter is for proven targets


async def test_a_burst_to_one_new_target_queues_in_half_of_the_remaining_slots() -> None:
    it = LanesUnderTest(prefetch=40)
    await it.enter_times(A, INITIAL_LIMIT)
    queued = it.enqueue(A, 16)
    await run_ready_tasks()
    assert [task.done() for task in queued] == [False] * 8 + [True] * 8
    assert {str(task.exception()) for task in queued[8:]} == {"lane full"}
    await it.enter_times(B, INITIAL_LIMIT)
    it.lanes.drain()
    await run_ready_tasks()


async def test_queued_messages_do_not_count_as_unproven_once_their_target_has_responded() -> None:
    it = LanesUnderTest(prefetch=24)
    await it.enter_times(A, INITIAL_LIMIT)
    queued = it.enqueue(A, 4)
    await run_ready_tasks()
    await it.enter_times(B, 4)
    await it.deferred(B)
    it.lanes.leave(it.lanes.lane(A), alive=True)
    await it.enter_times(C, 4)
    await it.enter_times("https://d.example:443", 4)
    await it.deferred("https://d.example:443")
    await run_ready_tasks()
    assert [task.done() for task in queued] == [True, True, False, False]
    it.lanes.drain()
    await run_ready_tasks()
    assert all(task.exception() for task in queued[2:])


async def test_a_target_that_fails_is_unproven_again() -> None:
    it = LanesUnderTest(prefetch=8)
    await it.prove(A, duration=0.1)
    await it.enter_times(A, 6)
    await it.enter_times(B, 4)
    it.lanes.leave(it.lanes.lane(B))
    it.lanes.leave(it.lanes.lane(A), alive=False)  # with five more in flight
    await it.deferred(C)
    for _ in range(2):
        it.lanes.leave(it.lanes.lane(B))
    await it.deferred(C)
    for _ in range(3):
        it.lanes.leave(it.lanes.lane(A))
    await it.enter(C)


@pytest.mark.parametrize("cause", ["the breaker opens", "the worker drains"])
async def test_a_message_deferred_and_cancelled_at_once_releases_no_place(cause: str) -> None:
    it = LanesUnderTest(max_failures=1)
    lane = it.lanes.lane(A)
    await it.enter_times(A, INITIAL_LIMIT)
    [queued] = it.enqueue(A, 1)
    await run_ready_tasks()
    if cause == "the worker drains":
        it.lanes.drain()
    else:
        it.lanes.leave(lane, alive=False)
    in_flight = lane.in_flight
    queued.cancel()
    await run_ready_tasks()
    assert queued.cancelled()
    assert lane.in_flight == in_flight


async def test_a_message_admitted_and_cancelled_at_once_passes_its_place_on(
    it: LanesUnderTest,
) -> None:
    lane = it.lanes.lane(A)
    await it.enter_times(A, INITIAL_LIMIT)
    first, second = it.enqueue(A, 2)
    await run_ready_tasks()
    it.lanes.leave(lane)
    first.cancel()
    await run_ready_tasks()
    assert second.result() is False
    assert lane.in_flight == INITIAL_LIMIT


async def test_draining_rejects_queued_and_new_messages(it: LanesUnderTest) -> None:
    await it.enter_times(A, INITIAL_LIMIT)
    [queued] = it.enqueue(A, 1)
    await run_ready_tasks()
    it.lanes.drain()
    await run_ready_tasks()
    assert isinstance(queued.exception(), InfrastructureError)
    with pytest.raises(InfrastructureError):
        await it.enter(B)


async def test_the_least_recently_used_idle_lane_is_removed(
    it: LanesUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LANES", 3)
    busy, first = it.lanes.lane("busy"), it.lanes.lane("first")
    await it.enter("busy")
    await open_breaker(it, "broken")
    assert it.lanes.lane("first") is first  # used again
    it.lanes.lane("fourth")
    assert it.changes == [("broken", Breaker.OPEN, 2.0), ("broken", Breaker.CLOSED, 0.0)]
    assert it.lanes.lane("first") is first
    assert it.lanes.lane("busy") is busy
    it.lanes.lane("fifth")  # replaces "fourth", the only one not used again
    assert it.lanes.lane("first") is first
