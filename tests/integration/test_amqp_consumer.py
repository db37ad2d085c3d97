"""The consumer and a real broker: the outcome of each error of a handler."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aio_pika
import pytest
from prometheus_client import REGISTRY
from pydantic import BaseModel

from shared.amqp.message import Message
from shared.errors import (
    ContractViolationError,
    DeferredError,
    InfrastructureError,
    PermanentError,
    TransientError,
)
from shared.resilience.retry import BUG_POLICY, RetryPolicy
from shared.topology import CALLBACKS, POSTINGS
from tests.fakes.broker_client import reason
from tests.fakes.consuming import consuming, fact_about, queued
from tests.fakes.waiting import until


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
