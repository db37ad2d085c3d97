"""AckBatcher: facts go out first; exactly what is done is acked, each delivery once."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp import commands, frame

from shared.amqp.ack_batcher import AckBatcher
from shared.amqp.facts import MAX_FACTS
from shared.amqp.frame_interceptor import InterceptedChannel
from shared.amqp.publisher import OutgoingMessage
from shared.contracts.facts import CallbackDead, CallbackDelivered, Facts
from shared.errors import InfrastructureError

CHANNEL = 5
AT = datetime(2026, 11, 20, 15, tzinfo=UTC)


def delivered(number: int) -> CallbackDelivered:
    return CallbackDelivered(
        fact_id=f"id-{number}/1",
        at=AT,
        callback_id=f"id-{number}",
        client_id=None,
        target="https://example.com:443",
        attempt=1,
        status=200,
        duration=0.1,
    )


def dead(number: int) -> CallbackDead:
    return CallbackDead(
        fact_id=f"id-{number}/1",
        at=AT,
        callback_id=f"id-{number}",
        client_id=None,
        target=None,
        attempt=1,
        reason="gone",
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@dataclass
class BrokerSide:
    """The broker's view of one channel: what is out, what was acked, what was given back.

    It is as strict as RabbitMQ: settling what is not out would close the channel.
    """

    out: set[int] = field(default_factory=set)
    acked: list[int] = field(default_factory=list)
    requeued: list[int] = field(default_factory=list)
    frames: int = 0
    number: int = CHANNEL

    def write(self, data: bytes) -> None:
        while data:
            used, channel, method = frame.unmarshal(data)
            data = data[used:]
            self.frames += 1
            assert channel == CHANNEL
            assert isinstance(method, commands.Basic.Ack | commands.Basic.Nack)
            tag = method.delivery_tag
            assert tag in self.out, f"PRECONDITION_FAILED - unknown delivery tag {tag}"
            meant = {each for each in self.out if each <= tag} if method.multiple else {tag}
            self.out -= meant
            if isinstance(method, commands.Basic.Ack):
                self.acked += sorted(meant)
            else:
                assert method.requeue
                self.requeued += sorted(meant)


@dataclass
class World:
    broker: BrokerSide = field(default_factory=BrokerSide)
    announced: list[OutgoingMessage] = field(default_factory=list)
    acked_before: list[int] = field(default_factory=list)  # acks that had gone at the announcement

    def __post_init__(self) -> None:
        self.settlement = self.settling(self.announce)

    def settling(self, announce: Callable[[list[OutgoingMessage]], object]) -> AckBatcher:
        return AckBatcher(cast("InterceptedChannel", self.broker), announce)  # type: ignore[arg-type]

    async def announce(self, facts: list[OutgoingMessage]) -> None:
        self.acked_before.append(len(self.broker.acked))
        await asyncio.sleep(0)
        self.announced += facts


# Steps: so many more deliveries come; the nth of those that are open is done, or given back; and
# perhaps all that has gathered is settled.
steps = st.tuples(
    st.integers(0, 3),
    st.none() | st.integers(0, 9),
    st.sampled_from(["done", "done", "given back"]),
    st.booleans(),
)


@settings(max_examples=50)
@given(st.lists(steps, max_size=30))
def test_exactly_what_is_done_is_acked_and_each_once(
    loop: asyncio.AbstractEventLoop, history: list[tuple[int, int | None, str, bool]]
) -> None:
    async def play() -> None:
        world = World()
        broker, settlement = world.broker, world.settlement
        open_, done, given_back, last = list[int](), list[int](), list[int](), 0
        for more, nth, what, flushes in history:
            open_ += range(last + 1, last + 1 + more)
            broker.out |= set(open_)
            last += more
            if open_ and nth is not None:
                tag = open_.pop(nth % len(open_))
                if what == "done":
                    settlement.done(tag)
                    done.append(tag)
                else:
                    settlement.requeue(tag)
                    given_back.append(tag)
            if flushes:
                await settlement.flush()
                assert sorted(broker.acked) == sorted(done)
        await settlement.flush()
        assert sorted(broker.acked) == sorted(done)
        assert sorted(broker.requeued) == sorted(given_back)
        assert broker.out == set(open_)

    loop.run_until_complete(play())


async def test_an_unbroken_run_is_one_frame() -> None:
    world = World()
    world.broker.out = set(range(1, 1001))
    for tag in sorted(world.broker.out, reverse=True):
        world.settlement.done(tag)
    await world.settlement.flush()
    assert world.broker.frames == 1
    assert world.broker.out == set()


async def test_what_was_given_back_does_not_break_a_run() -> None:
    world = World()
    world.broker.out = set(range(1, 101))
    world.settlement.requeue(1)
    world.settlement.requeue(50)
    for tag in sorted(world.broker.out):
        world.settlement.done(tag)
    await world.settlement.flush()
    assert world.broker.frames == 2 + 1
    assert world.broker.out == set()


async def test_facts_are_out_before_their_deliveries_are_acked() -> None:
    world = World()
    world.broker.out = {1, 2, 3}
    world.settlement.done(1, delivered(1))
    world.settlement.done(2)
    world.settlement.done(3, dead(3))
    await world.settlement.flush()
    assert world.acked_before == [0]
    assert [each.routing_key for each in world.announced] == ["callback.dead", "callback.delivered"]
    assert world.broker.acked == [1, 2, 3]


async def test_while_facts_are_not_confirmed_nothing_is_acked() -> None:
    world = World()
    confirmed = asyncio.Event()

    async def announce(_: list[OutgoingMessage]) -> None:
        await confirmed.wait()

    settlement = world.settling(announce)
    world.broker.out = {1, 2}
    settlement.done(1, delivered(1))
    flushing = asyncio.ensure_future(settlement.flush())
    await asyncio.sleep(0)
    settlement.done(2)
    again = asyncio.ensure_future(settlement.flush())
    for _ in range(5):
        await asyncio.sleep(0)
    assert world.broker.acked == []
    confirmed.set()
    await asyncio.gather(flushing, again)
    assert world.broker.acked == [1, 2]


async def test_facts_that_fail_leave_their_deliveries_unacked() -> None:
    async def announce(_: list[OutgoingMessage]) -> None:
        raise InfrastructureError("no broker")

    world = World()
    settlement = world.settling(announce)
    world.broker.out = {1}
    settlement.done(1, delivered(1))
    with pytest.raises(InfrastructureError):
        await settlement.flush()
    assert world.broker.acked == []


async def test_a_lost_channel_is_written_to_no_more() -> None:
    world = World()
    world.broker.out = {1, 2}
    world.settlement.done(1, delivered(1))
    world.settlement.lost = True
    world.settlement.requeue(2)
    await world.settlement.flush()
    assert world.broker.frames == 0
    assert len(world.announced) == 1  # it has happened all the same


@settings(max_examples=10)
@given(count=st.integers(1, 20))
@example(count=2 * MAX_FACTS)
@example(count=2 * MAX_FACTS + 1)
def test_facts_go_out_in_batches_of_one_type_that_readers_understand(
    loop: asyncio.AbstractEventLoop, count: int
) -> None:
    async def announced() -> list[OutgoingMessage]:
        world = World()
        world.broker.out = set(range(1, count + 1))
        for tag in range(1, count + 1):
            world.settlement.done(tag, delivered(tag) if tag % 2 else dead(tag))
        await world.settlement.flush()
        return world.announced

    outgoing = loop.run_until_complete(announced())
    told = []
    for each in outgoing:
        batch = Facts.model_validate_json(each.body).facts
        assert 0 < len(batch) <= MAX_FACTS
        assert {fact.type for fact in batch} == {each.routing_key}
        told += [fact.callback_id for fact in batch]
        assert list(json.loads(each.body)) == ["facts"]
        assert (each.exchange, each.mandatory) == ("outcomes", False)
        assert (each.properties.type, each.properties.content_type) == ("Facts", "application/json")
        assert each.properties.delivery_mode == 2
    assert sorted(told) == sorted(f"id-{tag}" for tag in range(1, count + 1))
    assert len({each.properties.message_id for each in outgoing}) == len(outgoing)


async def test_it_settles_by_itself_what_gathers() -> None:
    world = World()
    acked = asyncio.Event()
    broker_write = world.broker.write

    def write(data: bytes) -> None:
        broker_write(data)
        acked.set()

    world.broker.write = write  # type: ignore[method-assign]
    world.broker.out = {1, 2}
    running = asyncio.ensure_future(world.settlement.run(0.001))
    for tag in (1, 2):
        acked.clear()
        world.settlement.done(tag)
        async with asyncio.timeout(5):
            await acked.wait()
    running.cancel()
    assert world.broker.acked == [1, 2]
