"""Copies of a message, and the facts about it: both are confirmed before it is acknowledged."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractQueue
from prometheus_client import REGISTRY
from pydantic import BaseModel

from shared.amqp import codec
from shared.amqp.connection import connect
from shared.amqp.message import Message
from shared.amqp.publisher import Publisher
from shared.contracts.journal_facts import LetterDead
from shared.errors import DeferredError, PermanentError, TransientError
from shared.resilience.retry import RetryPolicy
from shared.topology import CALLBACKS, SCHEDULER_OUTCOMES
from tests.fakes.broker_client import DEAD, BrokerClient, broker_client, reason
from tests.fakes.consuming import consuming, fact_about, queued
from tests.fakes.waiting import until

REFUSED = ("ringback_fact_messages_dropped_total", {"reason": "refused"})


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
