"""The consumer and a real broker: the outcome of each error of a handler."""

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractQueue
from prometheus_client import REGISTRY
from pydantic import BaseModel

from shared.amqp import codec
from shared.amqp.connection import connect
from shared.amqp.consumer import Consumer
from shared.amqp.fact_sender import FactSender
from shared.amqp.message import ConsumerSpec, Message
from shared.amqp.publisher import Publisher
from shared.clock import SystemClock
from shared.contracts.facts import CallbackDead
from shared.contracts.journal_facts import LetterDead
from shared.errors import (
    ContractViolationError,
    DeferredError,
    InfrastructureError,
    PermanentError,
    TransientError,
)
from shared.process.health import Health
from shared.resilience.retry import BUG_POLICY, RetryPolicy
from shared.topology import CALLBACKS, POSTINGS, SCHEDULER_OUTCOMES, topology
from tests.fakes.broker_client import DEAD, BrokerClient, broker_client, reason
from tests.fakes.waiting import until

Handler = Callable[[Message, str], Awaitable[str]]
REFUSED = ("ringback_fact_messages_dropped_total", {"reason": "refused"})


@asynccontextmanager
async def consuming(
    url: str, handle: Handler, *, prefetch: int = 100, **others: Any
) -> AsyncIterator[tuple[Consumer[str, str], BrokerClient]]:
    """Consume `callbacks` in this process. The handler gets the body as text."""
    health = Health()
    # The whole topology costs the broker a second of CPU for each test.
    tables = topology().only((others.get("queue", CALLBACKS), SCHEDULER_OUTCOMES))
    publisher = Publisher(url, name="test publisher", topology=tables, health=health)
    facts = FactSender(publisher, url=url, name="test", health=health)
    spec: dict[str, Any] = {
        "queue": CALLBACKS,
        "parse": lambda message: message.body.decode(),
        "handle": handle,
        "policy": lambda _: RetryPolicy(delays=(1,), max_retries=3),
        "report": lambda *_: None,
        "send_facts": facts.send,
    }
    consumer: Consumer[str, str] = Consumer(
        ConsumerSpec(**(spec | others)),
        url=url,
        name="test consumer",
        topology=tables,
        publisher=publisher,
        prefetch=prefetch,
        clock=SystemClock(),
        health=health,
    )
    tasks = [asyncio.create_task(part.run()) for part in (publisher, facts, consumer)]
    try:
        await until(lambda: health.ready)
        async with broker_client(url) as client:
            yield consumer, client
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"queue": CALLBACKS} | labels) or 0.0


async def test_row_13_a_handler_bug_is_retried_and_does_not_affect_other_messages(
    amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[tuple[str, int]] = []

    async def handle(message: Message, body: str) -> str:
        attempts.append((message.id, message.attempt))
        if body == "poison" and message.attempt < 3:
            raise ZeroDivisionError("a bug of ours")
        return "fine"

    bugs = counted("ringback_handler_bugs_total")
    async with consuming(amqp_url, handle) as (_, publisher):
        for number in range(10):
            await publisher.send(b"good", message_id=f"before-{number}")
        await publisher.send(b"poison", message_id="poison")
        for number in range(10):
            await publisher.send(b"good", message_id=f"after-{number}")
        await until(lambda: ("poison", 3) in attempts)
    assert Counter(attempts).most_common(1)[0][1] == 1, "each attempt once"
    assert [name for name, _ in attempts if name != "poison"] == [
        f"{position}-{number}" for position in ("before", "after") for number in range(10)
    ]
    assert counted("ringback_handler_bugs_total") - bugs == 2
    errors = [record for record in caplog.records if record.message == "bug in a handler"]
    assert len(errors) == 2
    assert all(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in errors)
    assert (
        attempts.index(("poison", 1))
        < attempts.index(("after-9", 1))
        < attempts.index(("poison", 2))
    )


async def test_a_permanent_bug_is_dead_lettered_when_attempts_are_exhausted(
    amqp_url: str,
) -> None:
    async def handle(_: Message, __: str) -> str:
        raise KeyError("colour")

    policy: dict[str, Any] = {"policy": lambda _: RetryPolicy(delays=(1,), max_retries=1)}
    async with consuming(amqp_url, handle, **policy) as (_, publisher):
        await publisher.send(b"poison", message_id="poison")
        dead_letter = await publisher.dead_letter("poison")
    assert reason(dead_letter).startswith("gave up after 2 attempts: internal error")


@pytest.mark.parametrize("error", [ContractViolationError("no"), PermanentError("no")])
async def test_a_permanent_error_is_dead_lettered_at_once(amqp_url: str, error: Exception) -> None:
    async def handle(_: Message, __: str) -> str:
        raise error

    async with consuming(amqp_url, handle) as (_, publisher):
        await publisher.send(b"body", message_id="m")
        dead_letter = await publisher.dead_letter("m")
    assert (reason(dead_letter), dead_letter.body) == ("no", b"body")


async def test_a_transient_error_waits_for_the_requested_delay(amqp_url: str) -> None:
    async def handle(_: Message, __: str) -> str:
        raise TransientError("later", retry_after=4)

    async with consuming(amqp_url, handle) as (_, publisher):
        await publisher.send(b"body", message_id="m")
        await until(lambda: queued(publisher, "callbacks.retry.5s", 1))


async def test_a_queue_without_retries_on_purpose_retries_bugs_in_its_own_tiers(
    amqp_url: str,
) -> None:
    async def handle(_: Message, __: str) -> str:
        raise KeyError("colour")

    own: dict[str, Any] = {"queue": POSTINGS, "policy": lambda _: BUG_POLICY}
    async with consuming(amqp_url, handle, **own) as (_, publisher):
        message = aio_pika.Message(b"body", message_id="m")
        await publisher.channel.default_exchange.publish(message, routing_key=POSTINGS)
        await until(lambda: queued(publisher, f"{POSTINGS}.retry.5s", 1))


async def test_deferred_is_not_counted_as_an_attempt(amqp_url: str) -> None:
    attempts: list[tuple[int, int]] = []

    async def handle(message: Message, _: str) -> str:
        attempts.append((message.attempt, message.deferrals))
        if len(attempts) == 1:
            raise DeferredError("lane full", delay=1)
        if len(attempts) == 2:
            raise TransientError("failed")
        return "fine"

    async with consuming(amqp_url, handle) as (_, publisher):
        await publisher.send(b"body", message_id="m")
        await until(lambda: len(attempts) == 3)
    assert attempts == [(1, 0), (1, 1), (2, 0)]


async def test_unavailable_infrastructure_holds_messages_and_stops_consumption(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.amqp.consumer.INFRASTRUCTURE_RETRY_DELAY", 0.05)
    store_is_back = asyncio.Event()
    attempts: Counter[str] = Counter()
    deliveries: Counter[str] = Counter()

    def parse(message: Message) -> str:
        deliveries[message.id] += 1
        return message.body.decode()

    async def handle(message: Message, _: str) -> str:
        attempts[message.id] += 1
        assert message.attempt == 1
        if not store_is_back.is_set():
            raise InfrastructureError("the store is unavailable")
        return "fine"

    async with consuming(amqp_url, handle, prefetch=2, parse=parse) as (_, publisher):
        for name in ("one", "two", "three"):
            await publisher.send(b"body", message_id=name)
        await until(lambda: attempts["one"] > 2 and attempts["two"] > 2)
        assert attempts["three"] == 0, "no more than the prefetch is consumed"
        store_is_back.set()
        await until(lambda: attempts["three"] == 1)
        await until(lambda: queued(publisher, CALLBACKS, 0))
        assert not await publisher.read_dead_letters()
    assert set(deliveries.values()) == {1}, "requeued, although that counts towards the limit"


async def test_a_held_message_is_released_when_its_channel_is_lost(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker delivers it again, so it would be held once more after each reconnection."""
    monkeypatch.setattr("shared.amqp.consumer.INFRASTRUCTURE_RETRY_DELAY", 0.05)
    attempts: Counter[asyncio.Task[Any] | None] = Counter()

    async def handle(message: Message, _: str) -> str:
        if message.id == "held":
            attempts[asyncio.current_task()] += 1
            raise InfrastructureError("the store is unavailable")
        return "fine"

    async def lose_channel(_: Sequence[BaseModel]) -> None:
        if len(attempts) == 1:
            raise ConnectionResetError("the channel was closed")

    others: dict[str, Any] = {"report": fact_about, "send_facts": lose_channel}
    async with consuming(amqp_url, handle, **others) as (_, client):
        await client.send(b"body", message_id="held")
        await until(lambda: attempts)
        await client.send(b"body", message_id="other")
        await until(lambda: len(attempts) == 2)
        first, second = attempts
        assert first is not None
        await until(lambda: attempts[second] > 3)
        assert first.done()


async def test_finding_b16_a_message_is_not_held_for_longer_than_the_broker_allows(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.amqp.consumer.INFRASTRUCTURE_RETRY_DELAY", 0.05)
    monkeypatch.setattr("shared.amqp.consumer.HOLD_TIMEOUT", 0.2)
    monkeypatch.setattr("shared.amqp.consumer.HOLD_DELAY", 1.0)
    store_is_back = asyncio.Event()
    handled: list[tuple[int, int, int]] = []

    async def handle(message: Message, _: str) -> str:
        if not store_is_back.is_set():
            raise InfrastructureError("the store is unavailable")
        handled.append((message.step, message.attempt, message.deferrals))
        return "fine"

    async with consuming(amqp_url, handle) as (_, publisher):
        await publisher.send(b"body", message_id="m")
        await until(lambda: queued(publisher, "callbacks.retry.1s", 1))
        store_is_back.set()
        await until(lambda: handled)
    step, attempt, deferrals = handled[0]
    assert step >= 1
    assert (attempt, deferrals) == (1, 0), "waiting is not an attempt"


async def test_a_bug_outside_of_the_handler_is_dead_lettered_at_the_delivery_limit(
    amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(_: Message, __: str) -> str:
        return "fine"

    def parse(message: Message) -> str:
        if message.body == b"poison":
            raise AssertionError("a bug in reading")
        return "fine"

    async with consuming(amqp_url, handle, parse=parse) as (_, publisher):
        await publisher.send(b"poison", message_id="poison")
        await publisher.send(b"good", message_id="good")
        dead_letter = await publisher.dead_letter("poison")
    assert dead_letter.body == b"poison"
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)


async def test_messages_that_finish_in_any_order_are_acked_once(amqp_url: str) -> None:
    # Batches of acks must contain only finished messages. Those in progress stay unacknowledged.
    ended: Counter[str] = Counter()
    release = asyncio.Event()

    async def handle(message: Message, body: str) -> str:
        if body == "held":
            await release.wait()
        else:
            for _ in range(random.randrange(100)):
                await asyncio.sleep(0)  # other handlers run
        ended[message.id] += 1
        return "fine"

    async with consuming(amqp_url, handle, prefetch=50) as (consumer, publisher):
        names = [f"m-{number}" for number in range(500)]
        for number, name in enumerate(names):
            body = b"held" if number in (0, 7, 250) else b"free"
            await publisher.send(body, message_id=name)
        await until(lambda: len(ended) == 497)
        await consumer.drain(0.1)
    # The consumer left three unfinished: exactly these are delivered again.
    assert max(ended.values()) == 1
    redelivered: list[str] = []

    async def record(message: Message, _: str) -> str:
        redelivered.append(message.id)
        return "fine"

    async with consuming(amqp_url, record) as (_, publisher):
        await publisher.send(b"last", message_id="last")
        await until(lambda: "last" in redelivered)
    assert redelivered == ["m-0", "m-7", "m-250", "last"]


@pytest.mark.parametrize(
    "error", [TransientError("failed"), DeferredError("lane full", delay=1), PermanentError("no")]
)
async def test_a_message_is_not_acked_before_its_copy_is_confirmed(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    handled: list[str] = []
    published = asyncio.Event()

    async def handle(message: Message, _: str) -> str:
        handled.append(message.id)
        if len(handled) == 1:
            raise error
        return "fine"

    def publish_without_confirm(*_: Any) -> asyncio.Future[None]:
        published.set()
        return asyncio.get_running_loop().create_future()

    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "publish", publish_without_confirm)
        async with consuming(amqp_url, handle) as (consumer, publisher):
            await publisher.send(b"body", message_id="m")
            await asyncio.wait_for(published.wait(), 10)
            await consumer.drain(0)  # sends the acks
    async with consuming(amqp_url, handle):
        await until(lambda: handled == ["m", "m"])


async def test_a_message_without_an_id_has_the_same_one_after_a_crash(amqp_url: str) -> None:
    ids: list[str] = []

    async def handle(message: Message, _: str) -> str:
        ids.append(message.id)
        if len(ids) == 1:
            await asyncio.Event().wait()
        return "fine"

    async with consuming(amqp_url, handle) as (consumer, publisher):
        await publisher.send_without_message_id({"a": 1})
        await until(lambda: ids)
        await consumer.drain(0)  # sends the ack of the message without an id
    async with consuming(amqp_url, handle):
        await until(lambda: len(ids) == 2)
    assert ids[0] == ids[1]


def fact_about(message: Message, *_: Any, owner: str | None = None) -> BaseModel:
    return CallbackDead(
        fact_id=message.id,
        at=datetime(2026, 1, 1, tzinfo=UTC),
        callback_id=message.id,
        client_id=None,
        target=None,
        attempt=1,
        reason="r" * 1000,
        owner=owner,
    )


async def fill_queue(client: BrokerClient, name: str = "full") -> AbstractQueue:
    """Declare a queue that refuses all further messages."""
    full = await client.channel.declare_queue(
        name, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await client.channel.default_exchange.publish(aio_pika.Message(b""), name)
    return full


async def test_finding_b2_and_d3_an_observer_with_a_full_queue_does_not_stop_the_work(
    amqp_url: str,
) -> None:
    async def handle(_: Message, __: str) -> str:
        return "fine"

    def report(message: Message, *_: Any) -> BaseModel:
        return fact_about(message, owner="scheduler" if message.id.endswith("0") else None)

    dropped = REGISTRY.get_sample_value(*REFUSED) or 0.0
    async with consuming(amqp_url, handle, report=report, prefetch=2000) as (consumer, client):
        full = await fill_queue(client)
        await full.bind("outcomes", "#")
        names = {f"m-{number}" for number in range(1000)}
        await asyncio.gather(*(client.send(b"body", message_id=name) for name in names))
        await until(lambda: {fact["callback_id"] for fact in client.facts} == names)
        await consumer.drain(5)
    async with broker_client(amqp_url) as client:
        assert await client.length(CALLBACKS) == 0, "all messages are acknowledged"
        owned = [fact["fact_id"] for fact in await consumed_facts(client, SCHEDULER_OUTCOMES)]
    assert sorted(owned) == sorted(name for name in names if name.endswith("0"))
    assert len(client.fact_messages) == 0
    assert (REGISTRY.get_sample_value(*REFUSED) or 0.0) > dropped


async def test_the_facts_of_owners_are_confirmed_before_the_ack(amqp_url: str) -> None:
    handled: set[str] = set()

    async def handle(message: Message, _: str) -> str:
        handled.add(message.id)
        return "fine"

    def report(message: Message, *_: Any) -> BaseModel:
        return fact_about(message, owner="scheduler")

    names = {f"m-{number}" for number in range(1200)}
    async with consuming(amqp_url, handle, report=report, prefetch=2000) as (consumer, client):
        # The owner's queue refuses facts, which must delay the acks.
        await client.channel.queue_delete(SCHEDULER_OUTCOMES)
        await fill_queue(client, SCHEDULER_OUTCOMES)
        await asyncio.gather(*(client.send(b"body", message_id=name) for name in names))
        await until(lambda: handled == names)
    async with broker_client(amqp_url) as client:
        await until(lambda: queued(client, CALLBACKS, 1200))
        await client.channel.queue_delete(SCHEDULER_OUTCOMES)
        async with consuming(amqp_url, handle, report=report, prefetch=2000) as (consumer, _):
            await until(lambda: {fact["callback_id"] for fact in client.facts} == names)
            await consumer.drain(5)
        assert await client.length(CALLBACKS) == 0
        assert max(len(message.body) for message in client.fact_messages) < 1 << 20
        owned = {fact["fact_id"] for fact in await consumed_facts(client, SCHEDULER_OUTCOMES)}
        assert owned == names


async def consumed_facts(client: BrokerClient, name: str) -> list[dict[str, Any]]:
    """Consume the facts in a queue."""
    queue = await client.channel.get_queue(name)
    facts: list[dict[str, Any]] = []
    while message := await queue.get(no_ack=True, fail=False):
        facts += json.loads(message.body)["facts"]
    return facts


async def test_a_header_that_is_not_utf_8_is_dead_lettered_with_its_message(amqp_url: str) -> None:
    # aio-pika cannot send such a header, but other clients can.
    async def handle(_: Message, __: str) -> str:
        raise PermanentError("no")

    async with consuming(amqp_url, handle) as (_, publisher):
        async with connect(amqp_url, name="raw") as broker:
            _, intercepted = await broker.channel(confirms=True)
            confirmed = asyncio.Event()
            intercepted.on_confirm = lambda *_: confirmed.set()
            properties = codec.Properties(
                message_id="strange", headers={"name": "PLACEHOLDER", "tenant": "acme"}
            )
            frames = codec.encode_publish(
                intercepted.number,
                "",
                CALLBACKS,
                properties,
                b"body",
                mandatory=True,
                frame_max=131072,
            )
            intercepted.write(frames.replace(b"PLACEHOLDER", b"\xff\xfePLACEHOLD"))
            await asyncio.wait_for(confirmed.wait(), 10)
        dead_letter = await publisher.dead_letter("strange")
    assert dead_letter.body == b"body"
    assert reason(dead_letter).startswith("no")
    # A redrive derives the id of the new chain from it.
    assert isinstance(dead_letter.headers["x-ringback-died-at"], int)


async def queued(publisher: BrokerClient, queue: str, count: int) -> bool:
    return await publisher.length(queue) == count


async def test_finding_b6_a_repeat_of_a_copied_message_does_not_fork_the_retry_chain(
    amqp_url: str,
) -> None:
    """The copy in the tier is confirmed, but the ack of the original is lost."""
    attempts: list[int] = []

    async def handle(message: Message, _: str) -> str:
        attempts.append(message.attempt)
        raise TransientError("failed")

    facts: list[BaseModel] = []

    async def lose_channel(batch: Sequence[BaseModel]) -> None:
        facts.extend(fact for fact in batch if not isinstance(fact, LetterDead))
        if len(facts) == 1:  # before the ack of the first attempt
            raise ConnectionResetError("the channel was closed")

    others: dict[str, Any] = {"report": fact_about_attempt, "send_facts": lose_channel}
    others["policy"] = lambda _: RetryPolicy(delays=(1,), max_retries=2)
    async with consuming(amqp_url, handle, **others) as (_, client):
        await client.send(b"body", message_id="m")
        await client.dead_letter("m")
        await until(lambda: len(facts) == 4)
        assert attempts == [1, 2, 3]
        assert await client.length(DEAD) == 0, "only one dead letter"
    # The fact of the repeated attempt has the same id (finding B.5).
    assert [fact.model_dump()["fact_id"] for fact in facts] == ["m/m/1", "m/m/1", "m/m/2", "m/m/3"]


async def test_finding_b6_copies_of_one_step_are_one_attempt(amqp_url: str) -> None:
    """A publish whose confirm is unknown is repeated, so a tier can hold several copies."""
    attempts: Counter[tuple[str, int]] = Counter()

    async def handle(message: Message, _: str) -> str:
        attempts[message.id, message.attempt] += 1
        raise TransientError("failed")

    policy: dict[str, Any] = {"policy": lambda _: RetryPolicy(delays=(1,), max_retries=2)}
    async with consuming(amqp_url, handle, **policy) as (_, client):
        copy = {"x-ringback-id": "m", "x-ringback-attempt": 1}
        copy |= {"x-ringback-chain": "m", "x-ringback-step": 1}
        for number in range(12):
            await client.send(b"body", message_id=f"copy-{number}", headers=copy)
        await until(lambda: attempts["m", 3])
        await client.dead_letter("m")
        assert await client.length(DEAD) == 0, "only one dead letter"
    assert attempts == {("m", 2): 1, ("m", 3): 1}


async def test_finding_b6_different_messages_with_one_message_id_are_both_retried(
    amqp_url: str,
) -> None:
    """Some senders number their messages from 1 after each start."""
    attempts: Counter[tuple[str, int]] = Counter()

    async def handle(message: Message, text: str) -> str:
        attempts[text, message.attempt] += 1
        raise TransientError("failed")

    policy: dict[str, Any] = {"policy": lambda _: RetryPolicy(delays=(1,), max_retries=1)}
    async with consuming(amqp_url, handle, **policy) as (_, client):
        await client.send(b"first", message_id="1")
        await client.send(b"second", message_id="1")
        await until(lambda: attempts["first", 2] and attempts["second", 2])
        await until(lambda: queued(client, DEAD, 2))


async def test_finding_b6_a_dead_letter_that_is_moved_back_is_a_new_chain(amqp_url: str) -> None:
    """For example by a shovel, which keeps all headers."""
    attempts: list[str] = []

    async def handle(message: Message, _: str) -> str:
        attempts.append(message.chain)
        raise PermanentError("no") if len(attempts) == 1 else TransientError("failed")

    policy: dict[str, Any] = {"policy": lambda _: RetryPolicy(delays=(1,), max_retries=2)}
    async with consuming(amqp_url, handle, **policy) as (_, client):
        await client.send(b"body", message_id="m")
        dead_letter = await client.dead_letter("m")
        client.dead_letters.clear()
        await client.send(b"body", message_id="m", headers=dict(dead_letter.headers))
        await client.dead_letter("m")
    died_at = str(int(str(dead_letter.headers["x-ringback-died-at"])))
    assert attempts == ["m", f"m@{died_at}", f"m@{died_at}"]


def fact_about_attempt(message: Message, *_: Any) -> BaseModel:
    return fact_about(message).model_copy(update={"fact_id": message.attempt_id})


async def test_row_26_a_body_with_a_lone_surrogate_stops_no_consumer(amqp_url: str) -> None:
    handled: list[str] = []

    async def handle(message: Message, body: str) -> str:
        if "client_id" in body:
            raise ContractViolationError("not valid")
        handled.append(message.id)
        return "fine"

    body = b'{"id": "\\ud800", "client_id": "\\ud800", "target_url": "https://\\ud800/"}'
    # With a prefetch of one, the next message arrives only after the ack of the first.
    async with consuming(amqp_url, handle, prefetch=1) as (_, client):
        await client.send(body, message_id="poison")
        await client.dead_letter("poison")
        await client.send(b"good", message_id="after")
        await until(lambda: "after" in handled, within=10)
        assert await client.length(CALLBACKS) == 0
