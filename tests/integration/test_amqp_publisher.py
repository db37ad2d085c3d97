"""A publish ends confirmed, refused or unknown. Only a confirm allows the ack of its cause."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from pamqp.common import FieldTable

from deploy.local.broker import Broker
from shared.amqp.codec import Properties
from shared.amqp.publisher import (
    OutgoingMessage,
    Publisher,
    PublishRefusedError,
    PublishUnknownError,
    QueueFullError,
    UnpublishableError,
    new_id,
)
from shared.process.health import Health
from shared.topology import topology
from tests.fakes.broker_client import CALLBACKS, DEAD, broker_client
from tests.fakes.service import running
from tests.fakes.waiting import until

DECLARED = topology().only((CALLBACKS,))


@asynccontextmanager
async def publishing(url: str) -> AsyncIterator[Publisher]:
    publisher = Publisher(url, name="test", topology=DECLARED, health=Health())
    task = asyncio.create_task(publisher.run())
    try:
        await asyncio.wait_for(publisher.ready(), 30)
        yield publisher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def outgoing(queue: str = CALLBACKS, body: bytes = b"body", **headers: object) -> OutgoingMessage:
    return OutgoingMessage(queue, Properties(message_id=new_id(), headers=headers or None), body)


async def test_many_concurrent_publishes_are_confirmed_with_whole_bodies(amqp_url: str) -> None:
    sizes = [0, 1, 131_064, 131_065, 1_000_000, *range(2000)]
    async with publishing(amqp_url) as publisher:
        await publisher.publish_all(outgoing(body=b"b" * size) for size in sizes)
        async with broker_client(amqp_url) as client:
            queue = await client.channel.get_queue(CALLBACKS)
            received = []
            for _ in sizes:
                message = await queue.get(no_ack=True)
                assert message is not None
                received.append(len(message.body))
    assert received == sizes


async def test_only_the_message_without_a_queue_is_refused(amqp_url: str) -> None:
    async with publishing(amqp_url) as publisher:
        first, unroutable, other = (
            publisher.publish(outgoing()),
            publisher.publish(outgoing("nowhere")),
            publisher.publish(outgoing()),
        )
        await asyncio.gather(first, other)
        with pytest.raises(PublishRefusedError, match="no queue"):
            await unroutable


async def test_trap_1_a_returned_message_is_never_confirmed_by_another_with_its_id(
    amqp_url: str,
) -> None:
    async with publishing(amqp_url) as publisher:
        same = Properties(message_id="the-same")
        results = await asyncio.gather(
            publisher.publish(OutgoingMessage(CALLBACKS, same, b"1")),
            publisher.publish(OutgoingMessage("nowhere", same, b"2")),
            return_exceptions=True,
        )
    assert isinstance(results[1], PublishRefusedError)


async def test_row_9_a_deleted_queue_is_declared_again_and_the_next_publish_arrives(
    amqp_url: str,
) -> None:
    async with publishing(amqp_url) as publisher, broker_client(amqp_url) as client:
        await publisher.publish(outgoing(DEAD))  # confirmed, so the queue has a leader
        await client.channel.queue_delete(DEAD, timeout=60)
        with pytest.raises(PublishRefusedError):
            await publisher.publish(outgoing(DEAD))

        async def arrives() -> bool:
            # RabbitMQ may not confirm a publish while the queue is created
            try:
                await publisher.publish(outgoing(DEAD))
            except (PublishRefusedError, PublishUnknownError):
                return False
            return True

        await until(arrives, 45)


async def test_row_15_headers_larger_than_a_frame_are_an_error_and_keep_the_connection(
    amqp_url: str,
) -> None:
    async with publishing(amqp_url) as publisher:
        with pytest.raises(UnpublishableError, match="headers are larger"):
            await publisher.publish(outgoing(large="h" * 200_000))
        await publisher.publish(outgoing())


async def test_row_2_a_publish_to_a_suspended_broker_is_unknown_within_5_seconds(
    own_broker: Broker,
) -> None:
    loop = asyncio.get_running_loop()
    async with publishing(own_broker.url) as publisher:
        await publisher.publish(outgoing())
        own_broker.suspend()
        started = loop.time()
        with pytest.raises(PublishUnknownError):
            await publisher.publish(outgoing())
        assert 4 < loop.time() - started < 6.5
        own_broker.resume()
        await asyncio.wait_for(publisher.ready(), 30)

        async def confirmed() -> bool:
            try:
                await publisher.publish(outgoing())
            except (PublishRefusedError, PublishUnknownError):
                return False
            return True

        await until(confirmed)


async def test_row_5_a_channel_without_confirms_is_replaced(amqp_url: str) -> None:
    """As when RabbitMQ does not notice on a channel that a queue has a new leader."""
    async with publishing(amqp_url) as publisher:
        session = publisher._flow.session  # noqa: SLF001 - no way to make RabbitMQ do so
        assert session is not None
        session.channel.on_confirm = lambda *_: None
        with pytest.raises(PublishUnknownError):
            await publisher.publish(outgoing())
        await until(lambda: publisher._flow.session not in (None, session))  # noqa: SLF001
        await publisher.publish(outgoing())


async def test_row_5_a_channel_is_replaced_although_other_queues_confirm(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.amqp.confirms.CONFIRM_TIMEOUT", 0.2)
    monkeypatch.setattr("shared.amqp.confirms.REPLACE_INTERVAL", 0.5)
    async with publishing(amqp_url) as publisher:
        session = publisher._flow.session  # noqa: SLF001 - no way to make RabbitMQ do so
        assert session is not None
        confirmed = session.channel.on_confirm

        def ignore_first(tag: int, _: bool, accepted: bool) -> None:  # noqa: FBT001 - as called
            if tag > 1:
                confirmed(tag, False, accepted)  # noqa: FBT003

        session.channel.on_confirm = ignore_first
        ignored = publisher.publish(outgoing())
        while publisher._flow.session is session:  # noqa: SLF001
            await asyncio.wait([publisher.publish(outgoing())])
        with pytest.raises(PublishUnknownError):
            await ignored


FULL: FieldTable = {"x-max-length": 1, "x-overflow": "reject-publish"}


async def refusals(publisher: Publisher, seconds: float) -> None:
    """Publish to a full queue for so long, until the channel is replaced."""
    session, end = publisher._flow.session, asyncio.get_running_loop().time() + seconds  # noqa: SLF001
    while publisher._flow.session is session and asyncio.get_running_loop().time() < end:  # noqa: SLF001
        with pytest.raises((QueueFullError, PublishUnknownError)):
            await publisher.publish(outgoing("full"))


async def test_row_5_a_channel_is_replaced_once_a_minute_if_a_queue_refused_everything(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the channel first publishes to a queue while it has no leader."""
    monkeypatch.setattr("shared.amqp.confirms.REFUSAL_TIMEOUT", 0.2)
    async with publishing(amqp_url) as publisher, broker_client(amqp_url) as client:
        await client.channel.declare_queue("full", arguments=FULL)
        await client.channel.default_exchange.publish(aio_pika.Message(b""), "full")
        first = publisher._flow.session  # noqa: SLF001
        await publisher.publish(outgoing())
        await refusals(publisher, 30)
        await publisher.ready()
        second = publisher._flow.session  # noqa: SLF001
        assert second is not first
        await refusals(publisher, 2)
        assert publisher._flow.session is second  # noqa: SLF001


async def test_row_11_a_queue_that_has_become_full_does_not_replace_the_channel(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.amqp.confirms.REFUSAL_TIMEOUT", 0.2)
    async with publishing(amqp_url) as publisher, broker_client(amqp_url) as client:
        await client.channel.declare_queue("full", arguments=FULL)
        session = publisher._flow.session  # noqa: SLF001
        await publisher.publish(outgoing("full"))
        await refusals(publisher, 2)
        assert publisher._flow.session is session  # noqa: SLF001


async def test_row_2_missed_heartbeats_end_the_connection_but_not_the_service(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # aiormq cancels tasks that wait on such a connection. The acceptance tests suspend for 40 s.
    monkeypatch.setattr("shared.amqp.connection.HEARTBEAT", 1)
    health = Health()
    publisher = Publisher(own_broker.url, name="test", topology=DECLARED, health=health)
    task = asyncio.create_task(publisher.run())
    await until(lambda: health.ready)
    own_broker.suspend()
    await until(lambda: not health.ready)
    own_broker.resume()
    await until(lambda: health.ready or task.done())
    assert not task.done()
    await publisher.publish(outgoing())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_publish_is_unknown_at_once_when_the_connection_breaks(own_broker: Broker) -> None:
    async with publishing(own_broker.url) as publisher:
        own_broker.suspend()
        pending = publisher.publish(outgoing())
        own_broker.kill()
        with pytest.raises(PublishUnknownError):
            await asyncio.wait_for(asyncio.shield(pending), 3)
        with pytest.raises(PublishRefusedError, match="not connected"):
            await publisher.publish(outgoing())


async def test_finding_b12_publishes_in_flight_survive_an_alarm(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.amqp.confirms.CONFIRM_TIMEOUT", 1.0)
    monkeypatch.setattr("shared.amqp.confirms.CHECK_INTERVAL", 0.1)
    health = Health()
    publisher = Publisher(own_broker.url, name="test", topology=DECLARED, health=health)
    task = asyncio.create_task(publisher.run())
    await until(lambda: health.ready)
    loop = asyncio.get_running_loop()
    try:
        await asyncio.to_thread(own_broker.ctl, "set_vm_memory_high_watermark", "absolute", "1")
        sent = loop.time()
        in_flight = publisher.publish(outgoing())
        await until(lambda: not health.ready)
        await until(lambda: loop.time() > sent + 2)  # far beyond the timeout of the publish
    finally:
        await asyncio.to_thread(own_broker.ctl, "set_vm_memory_high_watermark", "0.4")
    await asyncio.wait_for(in_flight, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_finding_b12_an_unconfirmed_publish_is_forgotten_when_it_has_failed(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.amqp.confirms.REFUSAL_TIMEOUT", 0.2)
    monkeypatch.setattr("shared.amqp.confirms.CHECK_INTERVAL", 0.1)
    async with publishing(own_broker.url) as publisher:
        own_broker.suspend()
        pending = publisher.publish(outgoing())
        with pytest.raises(PublishUnknownError, match="no confirm"):
            await pending
        kept = weakref.ref(pending)
        del pending
        await asyncio.sleep(0)  # the loop ends the callback that woke this test
        gc.collect()
        assert kept() is None
        own_broker.resume()


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        (CALLBACKS, {"x-queue-type": "classic"}),
        ("callbacks.retry.1s", {"x-queue-type": "quorum", "x-message-ttl": 7}),
        (DEAD, {"x-queue-type": "quorum", "x-max-length": 5}),
    ],
)
async def test_row_14_a_queue_with_other_arguments_is_named_and_stops_the_start(
    amqp_url: str, tmp_path: Path, queue: str, arguments: dict[str, Any]
) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True, arguments=arguments)
    with running(tmp_path, amqp_url) as service:
        assert await service.exit_code() == 1
        errors = [line for line in service.lines if line["level"] == "CRITICAL"]
        assert errors
        assert all(f"'{queue}'" in line["message"] for line in errors)
        assert all("inequivalent arg" in line["message"] for line in errors)
        assert "Traceback" not in service.output
