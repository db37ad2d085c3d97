"""Lanes and breakers by example; every order of events is in test_lanes_every_order.py."""

import asyncio

import pytest

from shared.errors import DeferredError, InfrastructureError
from shared.resilience import lanes as module
from shared.resilience.lanes import INITIAL_LIMIT, MAX_QUEUE_TIME, Breaker
from tests.fakes.lanes import World, settled

A, B = "https://a.example:443", "https://b.example:443"


@pytest.fixture
def world() -> World:
    return World()


async def test_a_lane_starts_narrow_and_widens_with_each_answer(world: World) -> None:
    lane = world.lanes.lane(A)
    assert lane.limit == INITIAL_LIMIT
    await world.attempt(A, alive=True)
    assert lane.limit == INITIAL_LIMIT + 1
    await world.prove(A, duration=0.01)
    assert lane.limit == world.widest
    await world.attempt(A, alive=False)
    assert lane.limit == world.widest // 2
    await world.attempt(A, alive=None)
    assert lane.limit == world.widest // 2


async def test_the_breaker_opens_after_failures_in_a_row_and_not_before(world: World) -> None:
    await world.attempt(A, alive=False)
    await world.attempt(A, alive=False)
    await world.attempt(A, alive=True)
    await world.attempt(A, alive=False)
    await world.attempt(A, alive=False)
    assert world.told == []
    await world.attempt(A, alive=False)
    assert world.told == [(A, Breaker.OPEN, 2.0)]
    assert str(await world.refused(A)) == "breaker open"


async def test_failures_far_apart_are_not_in_a_row(world: World) -> None:
    for _ in range(10):
        await world.attempt(A, alive=False)
        world.time.now += module.IDLE_LIFETIME + 1
    assert world.told == []


async def test_pauses_double_up_to_a_minute_and_one_answer_closes(world: World) -> None:
    for _ in range(world.failures):
        await world.attempt(A, alive=False)
    pauses = [pause for _, _, pause in world.told]
    for _ in range(7):
        world.time.now += pauses[-1] - 0.01
        await world.refused(A)
        world.time.now += 0.01
        assert await world.attempt(A, alive=False)
        pauses.append(world.told[-1][2])
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    world.time.now += 60
    assert await world.attempt(A, alive=True)
    assert world.told[-1] == (A, Breaker.CLOSED, 0.0)
    assert not await world.attempt(A, alive=True)


async def test_who_waits_when_the_breaker_opens_is_sent_back() -> None:
    world = World(failures=1)
    lane = world.lanes.lane(A)
    await world.take(A, INITIAL_LIMIT)
    line = [asyncio.ensure_future(world.lanes.enter(lane)) for _ in range(2)]
    await settled()
    world.lanes.leave(lane, alive=False)
    await settled()
    for task in line:
        refused = task.exception()
        assert isinstance(refused, DeferredError)
        assert (str(refused), refused.delay) == ("breaker open", 2.0)
    assert lane.in_flight == INITIAL_LIMIT - 1


async def test_an_open_breaker_lets_one_probe_through_at_a_time(world: World) -> None:
    for _ in range(world.failures):
        await world.attempt(A, alive=False)
    world.time.now += 2
    lane = world.lanes.lane(A)
    assert await world.enter(A)
    await world.refused(A)
    world.lanes.leave(lane, probe=True, alive=None)  # it was not asked after all
    assert await world.enter(A)
    await world.refused(A)


async def test_an_open_breaker_is_no_other_targets_business(world: World) -> None:
    for _ in range(world.failures):
        await world.attempt(A, alive=False)
    assert not await world.attempt(B, alive=True)


@pytest.mark.parametrize(
    ("deferrals", "delay"), [(0, 1), (1, 2), (5, 32), (9, 300), (10**15, MAX_QUEUE_TIME)]
)
async def test_who_was_put_off_before_is_put_off_for_longer(
    world: World, deferrals: int, delay: float
) -> None:
    await world.prove(A, duration=10)
    await world.take(A, world.widest)
    refused = await world.refused(A, deferrals)
    assert (str(refused), refused.delay) == ("lane full", delay)


async def test_an_open_breaker_puts_off_for_as_long_as_it_is_open_at_least(world: World) -> None:
    for _ in range(world.failures):
        await world.attempt(A, alive=False)
    assert (await world.refused(A)).delay == 2
    assert (await world.refused(A, deferrals=3)).delay == 8
    world.time.now += 1.5
    assert (await world.refused(A)).delay == 1


async def test_a_line_is_as_long_as_half_a_second_takes_to_serve() -> None:
    world = World(widest=10)
    await world.prove(A, duration=0.1)  # ten at a time: 100 a second
    await world.take(A, 10)
    waiting = [asyncio.ensure_future(world.lanes.enter(world.lanes.lane(A))) for _ in range(60)]
    await settled()
    assert [task.done() for task in waiting] == [False] * 50 + [True] * 10
    world.lanes.drain()
    await settled()
    assert all(task.exception() for task in waiting)


async def test_a_line_that_does_not_move_is_sent_away_until_its_target_answers() -> None:
    world = World()
    lane = world.lanes.lane(A)
    await world.prove(A, duration=0.01)
    await world.take(A, world.widest)
    line = [asyncio.ensure_future(world.lanes.enter(lane)) for _ in range(3)]
    await settled()
    world.time.now += module.STALL_TIMEOUT
    world.lanes.sweep()
    world.lanes.leave(lane, alive=True, duration=0.01)  # it moves: the wait begins anew
    await settled()
    world.time.now += module.STALL_TIMEOUT
    world.lanes.sweep()
    await settled()
    assert [task.done() for task in line] == [True, False, False]
    world.time.now += 0.01
    world.lanes.sweep()
    await settled()
    assert [str(task.exception()) for task in line[1:]] == ["lane stalls"] * 2
    assert str(await world.refused(A)) == "lane stalls"  # nobody lines up again
    assert lane.in_flight == world.widest
    world.lanes.leave(lane, alive=True, duration=0.01)
    await world.take(A, 1)
    again = asyncio.ensure_future(world.lanes.enter(lane))
    await settled()
    assert not again.done()
    world.lanes.drain()
    await settled()
    assert again.exception()


async def test_targets_that_have_not_answered_hold_half_of_the_slots_together() -> None:
    world = World(slots=20)
    for number in range(5):
        await world.take(f"https://{number}.example:443", 2)
    refused = await world.refused("https://3.example:443", deferrals=9)
    assert str(refused) == "too many targets that have not answered"
    assert refused.delay == module.STALL_DELAY  # the crowd's fault: it waits no longer each time
    world.lanes.leave(world.lanes.lane("https://3.example:443"), alive=True)
    assert not await world.enter("https://3.example:443")  # it has answered: it counts no more
    await world.take("https://4.example:443", 1)


async def test_a_new_target_s_first_request_finds_a_place_beside_those_that_hang() -> None:
    world = World(slots=16)
    for number in range(4):
        await world.take(f"https://{number}.example:443", 2)
    for number in range(4, 8):
        await world.take(f"https://{number}.example:443", 1)
    await world.refused(A)  # a quarter belongs to those that have answered


async def test_a_burst_to_one_new_target_lines_up_in_half_of_what_is_left() -> None:
    world = World(slots=40)
    await world.take(A, INITIAL_LIMIT)
    line = [asyncio.ensure_future(world.lanes.enter(world.lanes.lane(A))) for _ in range(16)]
    await settled()
    assert [task.done() for task in line] == [False] * 8 + [True] * 8
    assert {str(task.exception()) for task in line[8:]} == {"lane full"}
    await world.take(B, INITIAL_LIMIT)
    world.lanes.drain()
    await settled()


async def test_who_waits_for_a_target_that_has_answered_counts_no_more() -> None:
    world = World(slots=24)
    await world.take(A, INITIAL_LIMIT)
    line = [asyncio.ensure_future(world.lanes.enter(world.lanes.lane(A))) for _ in range(4)]
    await settled()
    await world.take(B, 4)
    await world.refused(B)
    world.lanes.leave(world.lanes.lane(A), alive=True)
    await world.take("https://c.example:443", 4)
    await world.take("https://d.example:443", 4)
    await world.refused("https://d.example:443")
    await settled()
    assert [task.done() for task in line] == [True, True, False, False]
    world.lanes.drain()
    await settled()
    assert all(task.exception() for task in line[2:])


async def test_a_target_that_fails_counts_as_unanswered_again() -> None:
    world = World(slots=8)
    await world.prove(A, duration=0.1)
    await world.take(A, 6)
    await world.take(B, 4)
    world.lanes.leave(world.lanes.lane(B))
    world.lanes.leave(world.lanes.lane(A), alive=False)  # with five more in flight
    await world.refused("https://c.example:443")
    for _ in range(2):
        world.lanes.leave(world.lanes.lane(B))
    await world.refused("https://c.example:443")
    for _ in range(3):
        world.lanes.leave(world.lanes.lane(A))
    await world.take("https://c.example:443", 1)


@pytest.mark.parametrize("how", ["the breaker opens", "the worker drains"])
async def test_who_is_sent_back_and_cancelled_at_once_gives_back_no_place(how: str) -> None:
    world = World(failures=1)
    lane = world.lanes.lane(A)
    await world.take(A, INITIAL_LIMIT)
    waiting = asyncio.ensure_future(world.lanes.enter(lane))
    await settled()
    if how == "the worker drains":
        world.lanes.drain()
    else:
        world.lanes.leave(lane, alive=False)
    in_flight = lane.in_flight
    waiting.cancel()
    await settled()
    assert waiting.cancelled()
    assert lane.in_flight == in_flight


async def test_who_is_let_in_and_cancelled_at_once_gives_the_place_on(world: World) -> None:
    lane = world.lanes.lane(A)
    await world.take(A, INITIAL_LIMIT)
    first, second = (asyncio.ensure_future(world.lanes.enter(lane)) for _ in range(2))
    await settled()
    world.lanes.leave(lane)
    first.cancel()
    await settled()
    assert second.result() is False
    assert lane.in_flight == INITIAL_LIMIT


async def test_draining_sends_back_all_who_wait_and_lets_nobody_in(world: World) -> None:
    await world.take(A, INITIAL_LIMIT)
    waiting = asyncio.ensure_future(world.lanes.enter(world.lanes.lane(A)))
    await settled()
    world.lanes.drain()
    await settled()
    assert isinstance(waiting.exception(), InfrastructureError)
    with pytest.raises(InfrastructureError):
        await world.enter(B)


async def test_lanes_forget_the_longest_unused_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LANES", 3)
    busy, first = world.lanes.lane("busy"), world.lanes.lane("first")
    await world.enter("busy")
    for _ in range(world.failures):
        await world.attempt("broken", alive=False)
    assert world.lanes.lane("first") is first  # used again
    world.lanes.lane("fourth")
    assert world.told == [("broken", Breaker.OPEN, 2.0), ("broken", Breaker.CLOSED, 0.0)]
    assert world.lanes.lane("first") is first
    assert world.lanes.lane("busy") is busy
    world.lanes.lane("fifth")  # in place of "fourth", the only one nobody has come back to
    assert world.lanes.lane("first") is first
