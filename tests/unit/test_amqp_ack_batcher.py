"""AckBatcher: facts first, then each finished delivery is acknowledged once."""

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp import commands, frame
from pydantic import BaseModel

from shared.amqp.ack_batcher import AckBatcher
from shared.amqp.facts import MAX_FACTS, fact_messages
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
    """The broker's view of one channel: outstanding, acknowledged and requeued deliveries.

    It is as strict as RabbitMQ, which closes the channel over a tag that is not outstanding.
    """

    outstanding: set[int] = field(default_factory=set)
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
            assert isinstance(
                method, commands.Basic.Ack | commands.Basic.Nack | commands.Basic.Reject
            )
            tag = method.delivery_tag
            assert tag in self.outstanding, f"PRECONDITION_FAILED - unknown delivery tag {tag}"
            multiple = getattr(method, "multiple", False)
            tags = {each for each in self.outstanding if each <= tag} if multiple else {tag}
            self.outstanding -= tags
            if isinstance(method, commands.Basic.Ack):
                self.acked += sorted(tags)
            else:
                assert method.requeue
                self.requeued += sorted(tags)


@dataclass
class BatcherSetup:
    """An AckBatcher between a broker and a publisher of facts."""

    broker: BrokerSide = field(default_factory=BrokerSide)
    published: list[OutgoingMessage] = field(default_factory=list)
    acks_before: list[int] = field(default_factory=list)  # the number of acks before each publish

    def __post_init__(self) -> None:
        self.batcher = self.new_batcher(self.publish)

    def new_batcher(self, publish: Callable[[Sequence[BaseModel]], Awaitable[None]]) -> AckBatcher:
        return AckBatcher(cast("InterceptedChannel", self.broker), publish)

    def deliver(self, first: int, last: int) -> None:
        """Deliver messages with these tags."""
        for tag in range(first, last + 1):
            self.broker.outstanding.add(tag)
            self.batcher.started(tag)

    async def publish(self, facts: Sequence[BaseModel]) -> None:
        self.acks_before.append(len(self.broker.acked))
        await asyncio.sleep(0)
        self.published += fact_messages(facts)


# Steps: the number of new deliveries; the open delivery to finish, if any; how it is finished; and
# whether the batcher is flushed.
steps = st.tuples(
    st.integers(0, 3),
    st.none() | st.integers(0, 9),
    st.sampled_from(["done", "done", "requeued", "rejected"]),
    st.booleans(),
)


@settings(max_examples=50)
@given(st.lists(steps, max_size=30))
def test_exactly_the_finished_deliveries_are_acked_once(
    loop: asyncio.AbstractEventLoop, history: list[tuple[int, int | None, str, bool]]
) -> None:
    async def run_history() -> None:
        setup = BatcherSetup()
        broker, batcher = setup.broker, setup.batcher
        open_, done, requeued, last = list[int](), list[int](), list[int](), 0
        for new, nth, ending, flushes in history:
            open_ += range(last + 1, last + 1 + new)
            setup.deliver(last + 1, last + new)
            last += new
            if open_ and nth is not None:
                tag = open_.pop(nth % len(open_))
                if ending == "done":
                    batcher.done(tag)
                    done.append(tag)
                else:
                    (batcher.requeue if ending == "requeued" else batcher.reject)(tag)
                    requeued.append(tag)
            if flushes:
                await batcher.flush()
                assert sorted(broker.acked) == sorted(done)
        await batcher.flush()
        assert sorted(broker.acked) == sorted(done)
        assert sorted(broker.requeued) == sorted(requeued)
        assert broker.outstanding == set(open_)

    loop.run_until_complete(run_history())


async def test_an_unbroken_run_is_one_frame() -> None:
    setup = BatcherSetup()
    setup.deliver(1, 1000)
    for tag in sorted(setup.broker.outstanding, reverse=True):
        setup.batcher.done(tag)
    await setup.batcher.flush()
    assert setup.broker.frames == 1
    assert setup.broker.outstanding == set()


async def test_requeued_deliveries_do_not_interrupt_a_run() -> None:
    setup = BatcherSetup()
    setup.deliver(1, 100)
    setup.batcher.requeue(1)
    setup.batcher.requeue(50)
    for tag in sorted(setup.broker.outstanding):
        setup.batcher.done(tag)
    await setup.batcher.flush()
    assert setup.broker.frames == 2 + 1
    assert setup.broker.outstanding == set()


async def test_facts_are_published_before_their_deliveries_are_acked() -> None:
    setup = BatcherSetup()
    setup.deliver(1, 3)
    setup.batcher.done(1, delivered(1))
    setup.batcher.done(2)
    setup.batcher.done(3, dead(3))
    await setup.batcher.flush()
    assert setup.acks_before == [0]
    assert [each.routing_key for each in setup.published] == ["callback.dead", "callback.delivered"]
    assert setup.broker.acked == [1, 2, 3]


async def test_nothing_is_acked_until_the_facts_are_confirmed() -> None:
    setup = BatcherSetup()
    confirmed = asyncio.Event()

    async def publish(_: Sequence[BaseModel]) -> None:
        await confirmed.wait()

    batcher = setup.batcher = setup.new_batcher(publish)
    setup.deliver(1, 2)
    batcher.done(1, delivered(1))
    first_flush = asyncio.ensure_future(batcher.flush())
    await asyncio.sleep(0)
    batcher.done(2)
    second_flush = asyncio.ensure_future(batcher.flush())
    for _ in range(5):
        await asyncio.sleep(0)
    assert setup.broker.acked == []
    confirmed.set()
    await asyncio.gather(first_flush, second_flush)
    assert setup.broker.acked == [1, 2]


async def test_deliveries_stay_unacked_if_their_facts_fail() -> None:
    async def publish(_: Sequence[BaseModel]) -> None:
        raise InfrastructureError("no broker")

    setup = BatcherSetup()
    batcher = setup.batcher = setup.new_batcher(publish)
    setup.deliver(1, 1)
    batcher.done(1, delivered(1))
    with pytest.raises(InfrastructureError):
        await batcher.flush()
    assert setup.broker.acked == []


async def test_nothing_is_written_to_a_lost_channel() -> None:
    setup = BatcherSetup()
    setup.deliver(1, 2)
    setup.batcher.done(1, delivered(1))
    setup.batcher.lost = True
    setup.batcher.requeue(2)
    await setup.batcher.flush()
    assert setup.broker.frames == 0
    assert len(setup.published) == 1  # the work was done


@settings(max_examples=10)
@given(count=st.integers(1, 20))
@example(count=2 * MAX_FACTS)
@example(count=2 * MAX_FACTS + 1)
def test_facts_are_published_in_valid_batches_of_one_type(
    loop: asyncio.AbstractEventLoop, count: int
) -> None:
    async def published() -> list[OutgoingMessage]:
        setup = BatcherSetup()
        setup.deliver(1, count)
        for tag in range(1, count + 1):
            setup.batcher.done(tag, delivered(tag) if tag % 2 else dead(tag))
        await setup.batcher.flush()
        return setup.published

    outgoing = loop.run_until_complete(published())
    ids = []
    for each in outgoing:
        batch = Facts.model_validate_json(each.body).facts
        assert 0 < len(batch) <= MAX_FACTS
        assert {fact.type for fact in batch} == {each.routing_key}
        ids += [fact.callback_id for fact in batch]
        assert list(json.loads(each.body)) == ["facts"]
        assert (each.exchange, each.mandatory) == ("outcomes", False)
        assert (each.properties.type, each.properties.content_type) == ("Facts", "application/json")
        assert each.properties.delivery_mode == 2
    assert sorted(ids) == sorted(f"id-{tag}" for tag in range(1, count + 1))
    assert len({each.properties.message_id for each in outgoing}) == len(outgoing)


async def test_run_acks_without_explicit_flushes() -> None:
    setup = BatcherSetup()
    acked = asyncio.Event()
    broker_write = setup.broker.write

    def write(data: bytes) -> None:
        broker_write(data)
        acked.set()

    setup.broker.write = write  # type: ignore[method-assign]
    setup.deliver(1, 2)
    running = asyncio.ensure_future(setup.batcher.run(0.001))
    for tag in (1, 2):
        acked.clear()
        setup.batcher.done(tag)
        async with asyncio.timeout(5):
            await acked.wait()
    running.cancel()
    assert setup.broker.acked == [1, 2]


async def test_finding_b18_a_held_delivery_does_not_make_the_batcher_grow() -> None:
    setup = BatcherSetup()
    setup.deliver(1, 1)
    tracemalloc.start()
    try:
        for tag in range(2, 20_002):
            setup.deliver(tag, tag)
            setup.batcher.done(tag)
            if tag % 100 == 0:
                await setup.batcher.flush()
                setup.broker.acked.clear()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    setup.batcher.done(1)
    await setup.batcher.flush()
    assert setup.broker.outstanding == set()


async def test_finding_b1_a_bug_is_returned_by_a_reject_which_counts_as_a_delivery() -> None:
    """RabbitMQ 4.3 does not count basic.nack towards the delivery limit."""
    setup = BatcherSetup()
    setup.deliver(1, 2)
    written: list[bytes] = []
    setup.broker.write = written.append  # type: ignore[method-assign, assignment]
    setup.batcher.reject(1)
    setup.batcher.requeue(2)
    methods = [frame.unmarshal(data)[2] for data in written]
    assert [type(method) for method in methods] == [commands.Basic.Reject, commands.Basic.Nack]
    assert all(method.requeue for method in methods)  # type: ignore[union-attr]
