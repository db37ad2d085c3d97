"""Lanes and circuit breakers by example. test_lanes_every_order.py tests all orders of events."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from shared.errors import DeferredError, InfrastructureError
from shared.resilience import lanes as module
from shared.resilience.breakers import breaker_observer
from shared.resilience.lanes import INITIAL_LIMIT, MAX_DEFERRAL, Breaker
from shared.resilience.retry import JITTER
from shared.topology import TIERS
from tests.fakes.lanes import LanesUnderTest, run_ready_tasks
from tests.fakes.waiting import until

A, B, C = "https://a.example:443", "https://b.example:443", "https://c.example:443"


@pytest.fixture
def setup() -> LanesUnderTest:
    return LanesUnderTest()


async def open_breaker(setup: LanesUnderTest, target: str) -> None:
    for _ in range(setup.max_failures):
        await setup.attempt(target, alive=False)


async def test_a_lane_starts_narrow_and_each_response_widens_it(setup: LanesUnderTest) -> None:
    lane = setup.lanes.lane(A)
    assert lane.limit == INITIAL_LIMIT
    await setup.attempt(A, alive=True)
    assert lane.limit == INITIAL_LIMIT + 1
    await setup.prove(A, duration=0.01)
    assert lane.limit == setup.max_in_flight
    await setup.attempt(A, alive=False)
    assert lane.limit == setup.max_in_flight // 2
    await setup.attempt(A, alive=None)
    assert lane.limit == setup.max_in_flight // 2


async def test_the_breaker_opens_only_after_consecutive_failures(setup: LanesUnderTest) -> None:
    await setup.attempt(A, alive=False)
    await setup.attempt(A, alive=False)
    await setup.attempt(A, alive=True)
    await setup.attempt(A, alive=False)
    await setup.attempt(A, alive=False)
    assert setup.changes == []
    await setup.attempt(A, alive=False)
    assert setup.changes == [(A, Breaker.OPEN, 2.0)]
    assert str(await setup.deferred(A)) == "breaker open"


async def test_failures_far_apart_are_not_consecutive(setup: LanesUnderTest) -> None:
    for _ in range(10):
        await setup.attempt(A, alive=False)
        setup.time.now += module.FAILURE_LIFETIME + 1
    assert setup.changes == []


async def test_failed_probes_double_the_open_time_up_to_a_minute_and_one_response_closes(
    setup: LanesUnderTest,
) -> None:
    await open_breaker(setup, A)
    open_times = [open_time for _, _, open_time in setup.changes]
    for _ in range(7):
        setup.time.now += open_times[-1] - 0.01
        await setup.deferred(A)
        setup.time.now += 0.01
        assert await setup.attempt(A, alive=False)
        open_times.append(setup.changes[-1][2])
    assert open_times == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    setup.time.now += 60
    assert await setup.attempt(A, alive=True)
    assert setup.changes[-1] == (A, Breaker.CLOSED, 0.0)
    assert not await setup.attempt(A, alive=True)


async def test_queued_messages_are_deferred_when_the_breaker_opens() -> None:
    setup = LanesUnderTest(max_failures=1)
    lane = setup.lanes.lane(A)
    await setup.enter_times(A, INITIAL_LIMIT)
    queued = setup.enqueue(A, 2)
    await run_ready_tasks()
    setup.lanes.leave(lane, alive=False)
    await run_ready_tasks()
    for task in queued:
        error = task.exception()
        assert isinstance(error, DeferredError)
        assert (str(error), error.delay) == ("breaker open", 2.0)
    assert lane.in_flight == INITIAL_LIMIT - 1


async def test_n8_a_full_lane_is_reported_while_it_is_full_but_not_each_time(
    setup: LanesUnderTest,
) -> None:
    await setup.attempt(A, alive=True, duration=module.MAX_QUEUE_TIME * 100)
    await setup.enter_times(A, setup.lanes.lane(A).limit)
    assert setup.full == []
    for _ in range(100):
        await setup.deferred(A)
    assert setup.full == [(A, "lane full")]
    setup.time.now += module.REPORT_INTERVAL
    await setup.deferred(A)
    assert setup.full == [(A, "lane full")] * 2
    # An open breaker is reported as such.
    await open_breaker(setup, B)
    await setup.deferred(B)
    assert len(setup.full) == 2


async def test_an_open_breaker_admits_one_probe_at_a_time(setup: LanesUnderTest) -> None:
    await open_breaker(setup, A)
    setup.time.now += 2
    lane = setup.lanes.lane(A)
    assert await setup.enter(A)
    await setup.deferred(A)
    setup.lanes.leave(lane, probe=True, alive=None)  # no request was sent
    assert await setup.enter(A)
    await setup.deferred(A)


async def test_an_open_breaker_does_not_affect_other_targets(setup: LanesUnderTest) -> None:
    await open_breaker(setup, A)
    assert not await setup.attempt(B, alive=True)


@pytest.mark.parametrize(
    ("deferrals", "delay"), [(0, 1), (1, 2), (5, 32), (9, 300), (10**15, MAX_DEFERRAL)]
)
async def test_each_deferral_of_a_message_is_longer(
    setup: LanesUnderTest, deferrals: int, delay: float
) -> None:
    await setup.prove(A, duration=10)
    await setup.enter_times(A, setup.max_in_flight)
    error = await setup.deferred(A, deferrals)
    assert (str(error), error.delay) == ("lane full", delay)


async def test_an_open_breaker_defers_at_least_until_it_closes(setup: LanesUnderTest) -> None:
    await open_breaker(setup, A)
    assert (await setup.deferred(A)).delay == 2
    assert (await setup.deferred(A, deferrals=3)).delay == 8
    setup.time.now += 1.5
    assert (await setup.deferred(A)).delay == 1


async def test_a_queue_holds_as_many_as_the_target_serves_in_half_a_second() -> None:
    setup = LanesUnderTest(max_in_flight=10)
    await setup.prove(A, duration=0.1)  # ten at a time: 100 a second
    await setup.enter_times(A, 10)
    queued = setup.enqueue(A, 60)
    await run_ready_tasks()
    assert [task.done() for task in queued] == [False] * 50 + [True] * 10
    setup.lanes.drain()
    await run_ready_tasks()
    assert all(task.exception() for task in queued)


async def test_a_stalled_queue_is_deferred_until_the_target_responds() -> None:
    setup = LanesUnderTest()
    lane = setup.lanes.lane(A)
    await setup.prove(A, duration=0.01)
    await setup.enter_times(A, setup.max_in_flight)
    queued = setup.enqueue(A, 3)
    await run_ready_tasks()
    setup.time.now += module.STALL_TIMEOUT
    setup.lanes.defer_stalled()
    setup.lanes.leave(lane, alive=True, duration=0.01)  # progress: the timeout starts again
    await run_ready_tasks()
    setup.time.now += module.STALL_TIMEOUT
    setup.lanes.defer_stalled()
    await run_ready_tasks()
    assert [task.done() for task in queued] == [True, False, False]
    setup.time.now += 0.01
    setup.lanes.defer_stalled()
    await run_ready_tasks()
    assert [str(task.exception()) for task in queued[1:]] == ["lane stalled"] * 2
    assert str(await setup.deferred(A)) == "lane stalled"  # no new queue starts
    assert lane.in_flight == setup.max_in_flight
    setup.lanes.leave(lane, alive=True, duration=0.01)
    await setup.enter(A)
    [another] = setup.enqueue(A, 1)
    await run_ready_tasks()
    assert not another.done()
    setup.lanes.drain()
    await run_ready_tasks()
    assert another.exception()


async def test_unproven_targets_together_hold_half_of_the_slots() -> None:
    setup = LanesUnderTest(prefetch=20)
    for number in range(5):
        await setup.enter_times(f"https://{number}.example:443", 2)
    error = await setup.deferred("https://3.example:443", deferrals=9)
    assert str(error) == "too many unproven targets"
    assert error.delay == module.STALL_DELAY  # caused by other targets: it does not grow
    setup.lanes.leave(setup.lanes.lane("https://3.example:443"), alive=True)
    assert not await setup.enter("https://3.example:443")  # the target has responded
    await setup.enter("https://4.example:443")


async def test_the_first_request_to_a_new_target_gets_a_place_beside_targets_that_hang() -> None:
    setup = LanesUnderTest(prefetch=16)
    for number in range(4):
        await setup.enter_times(f"https://{number}.example:443", 2)
    for number in range(4, 8):
        await setup.enter(f"https://{number}.example:443")
    await setup.deferred(A)  # a quarter is for proven targets


async def test_a_burst_to_one_new_target_queues_in_half_of_the_remaining_slots() -> None:
    setup = LanesUnderTest(prefetch=40)
    await setup.enter_times(A, INITIAL_LIMIT)
    queued = setup.enqueue(A, 16)
    await run_ready_tasks()
    assert [task.done() for task in queued] == [False] * 8 + [True] * 8
    assert {str(task.exception()) for task in queued[8:]} == {"lane full"}
    await setup.enter_times(B, INITIAL_LIMIT)
    setup.lanes.drain()
    await run_ready_tasks()


async def test_queued_messages_do_not_count_as_unproven_once_their_target_has_responded() -> None:
    setup = LanesUnderTest(prefetch=24)
    await setup.enter_times(A, INITIAL_LIMIT)
    queued = setup.enqueue(A, 4)
    await run_ready_tasks()
    await setup.enter_times(B, 4)
    await setup.deferred(B)
    setup.lanes.leave(setup.lanes.lane(A), alive=True)
    await setup.enter_times(C, 4)
    await setup.enter_times("https://d.example:443", 4)
    await setup.deferred("https://d.example:443")
    await run_ready_tasks()
    assert [task.done() for task in queued] == [True, True, False, False]
    setup.lanes.drain()
    await run_ready_tasks()
    assert all(task.exception() for task in queued[2:])


async def test_a_target_that_fails_is_unproven_again() -> None:
    setup = LanesUnderTest(prefetch=8)
    await setup.prove(A, duration=0.1)
    await setup.enter_times(A, 6)
    await setup.enter_times(B, 4)
    setup.lanes.leave(setup.lanes.lane(B))
    setup.lanes.leave(setup.lanes.lane(A), alive=False)  # with five more in flight
    await setup.deferred(C)
    for _ in range(2):
        setup.lanes.leave(setup.lanes.lane(B))
    await setup.deferred(C)
    for _ in range(3):
        setup.lanes.leave(setup.lanes.lane(A))
    await setup.enter(C)


@pytest.mark.parametrize("cause", ["the breaker opens", "the worker drains"])
async def test_a_message_deferred_and_cancelled_at_once_releases_no_place(cause: str) -> None:
    setup = LanesUnderTest(max_failures=1)
    lane = setup.lanes.lane(A)
    await setup.enter_times(A, INITIAL_LIMIT)
    [queued] = setup.enqueue(A, 1)
    await run_ready_tasks()
    if cause == "the worker drains":
        setup.lanes.drain()
    else:
        setup.lanes.leave(lane, alive=False)
    in_flight = lane.in_flight
    queued.cancel()
    await run_ready_tasks()
    assert queued.cancelled()
    assert lane.in_flight == in_flight


async def test_a_message_admitted_and_cancelled_at_once_passes_its_place_on(
    setup: LanesUnderTest,
) -> None:
    lane = setup.lanes.lane(A)
    await setup.enter_times(A, INITIAL_LIMIT)
    first, second = setup.enqueue(A, 2)
    await run_ready_tasks()
    setup.lanes.leave(lane)
    first.cancel()
    await run_ready_tasks()
    assert second.result() is False
    assert lane.in_flight == INITIAL_LIMIT


async def test_draining_rejects_queued_and_new_messages(setup: LanesUnderTest) -> None:
    await setup.enter_times(A, INITIAL_LIMIT)
    [queued] = setup.enqueue(A, 1)
    await run_ready_tasks()
    setup.lanes.drain()
    await run_ready_tasks()
    assert isinstance(queued.exception(), InfrastructureError)
    with pytest.raises(InfrastructureError):
        await setup.enter(B)


async def test_the_least_recently_used_idle_lane_is_removed(
    setup: LanesUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LANES", 3)
    monkeypatch.setattr(module, "MAX_FAILING_LANES", 1)
    busy, first = setup.lanes.lane("busy"), setup.lanes.lane("first")
    await setup.enter("busy")
    await open_breaker(setup, "broken")
    await setup.attempt("failing", alive=False)  # replaces "broken"
    setup.lanes.lane("third")
    assert setup.lanes.lane("first") is first  # used again
    setup.lanes.lane("fourth")
    assert setup.changes == [("broken", Breaker.OPEN, 2.0), ("broken", Breaker.CLOSED, 0.0)]
    assert setup.lanes.lane("first") is first
    assert setup.lanes.lane("busy") is busy
    setup.lanes.lane("fifth")  # replaces "fourth", the only one not used again
    assert setup.lanes.lane("first") is first


async def test_n15_a_breaker_of_a_target_that_nobody_calls_any_more_is_closed(
    setup: LanesUnderTest,
) -> None:
    """Otherwise its gauge would be 1, and its alert would fire, until the process ends."""
    await open_breaker(setup, A)
    await open_breaker(setup, B)
    await open_breaker(setup, C)
    setup.time.now += module.ABANDONED_TIMEOUT
    setup.lanes.remove_abandoned()
    assert Breaker.CLOSED not in {breaker for _, breaker, _ in setup.changes}

    await setup.attempt(B, alive=False)  # a probe
    probe = await setup.enter(C)
    setup.time.now += 1
    setup.lanes.remove_abandoned()
    assert setup.changes[3:] == [(B, Breaker.OPEN, 4.0), (A, Breaker.CLOSED, 0.0)]
    assert not await setup.attempt(A, alive=False)  # no probe any more

    setup.lanes.leave(setup.lanes.lane(C), probe=probe, alive=False)
    assert setup.changes[5:] == [(C, Breaker.OPEN, 4.0)]


def test_n15_a_breaker_is_open_while_messages_wait_in_the_longest_tier() -> None:
    """Otherwise the alert about a target that is down would end between its attempts."""
    longest = max(tier.seconds for tier in TIERS) * (1 + JITTER)
    assert longest < module.ABANDONED_TIMEOUT


async def test_n15_abandoned_lanes_are_removed_while_the_worker_runs(
    setup: LanesUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_TIMEOUT", 0)
    await open_breaker(setup, A)
    setup.time.now += module.ABANDONED_TIMEOUT + 1
    running = asyncio.create_task(setup.lanes.run())
    await until(lambda: setup.changes[1:] == [(A, Breaker.CLOSED, 0.0)])
    running.cancel()


async def test_finding_b7_breakers_open_among_many_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """12,000 targets in turn, of which one in twenty fails, with room for 10,000 lanes."""
    monkeypatch.setattr(module, "MAX_LANES", 100)
    setup = LanesUnderTest()
    for _ in range(setup.max_failures):
        for number in range(120):
            await setup.attempt(f"https://{number}.example:443", alive=number % 20 != 0)
    assert {target for target, breaker, _ in setup.changes if breaker is Breaker.OPEN} == {
        f"https://{number}.example:443" for number in range(0, 120, 20)
    }


async def test_finding_b8_a_breaker_is_open_for_one_client_only(setup: LanesUnderTest) -> None:
    await open_breaker(setup, A)
    other = setup.lanes.lane(A, "another-client")
    assert await setup.lanes.enter(other) is False


async def test_finding_b8_a_paused_lane_defers_and_its_breaker_stays_closed(
    setup: LanesUnderTest,
) -> None:
    lane = setup.lanes.lane(A)
    for _ in range(10):
        await setup.enter(A)
        setup.lanes.leave(lane, alive=True, pause=30)
        error = await setup.deferred(A)
        assert (str(error), error.delay) == ("paused by the target", 30)
        setup.time.now += 30
    assert setup.changes == []
    await setup.enter(A)
    setup.lanes.leave(lane, alive=True, pause=3600)
    assert (await setup.deferred(A)).delay == module.MAX_PAUSE
    assert not await setup.attempt(B, alive=True)


async def test_finding_b20_the_gauge_counts_the_open_breakers_of_a_label() -> None:
    observe = breaker_observer(lambda _: "finding-b20")

    def value() -> float | None:
        labels = {"target_url": "finding-b20"}
        return REGISTRY.get_sample_value("ringback_breaker_open", labels)

    observe(A, Breaker.OPEN, module.INITIAL_OPEN_TIME)
    observe(B, Breaker.OPEN, module.INITIAL_OPEN_TIME)
    observe(B, Breaker.OPEN, 2 * module.INITIAL_OPEN_TIME)
    assert value() == 2
    observe(A, Breaker.CLOSED, 0.0)
    assert value() == 1
    observe(B, Breaker.CLOSED, 0.0)
    assert value() == 0
