"""A publish ends in one of three ways, and only one of them permits to ack what it follows from."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from deploy.local.broker import Broker
from shared.amqp.codec import Properties
from shared.amqp.publisher import (
    OutgoingMessage,
    Publisher,
    PublishRefusedError,
    PublishUnknownError,
    UnpublishableError,
    new_id,
)
from shared.process.health import Health
from shared.topology import topology
from tests.fakes.outside import CALLBACKS, DEAD, outside
from tests.fakes.service import running
from tests.fakes.waiting import until


@asynccontextmanager
async def publishing(url: str) -> AsyncIterator[Publisher]:
    publisher = Publisher(url, name="test", topology=topology(), health=Health())
    task = asyncio.create_task(publisher.run())
    try:
        await asyncio.wait_for(publisher.ready(), 30)
        yield publisher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def outgoing(queue: str = CALLBACKS, body: bytes = b"body", **headers: object) -> OutgoingMessage:
    return OutgoingMessage(queue, Properties(message_id=new_id(), headers=headers or None), body)


async def test_confirmed_many_at_once_bodies_whole(amqp_url: str) -> None:
    sizes = [0, 1, 131_064, 131_065, 1_000_000, *range(2000)]
    async with publishing(amqp_url) as publisher:
        await publisher.publish_all(outgoing(body=b"b" * size) for size in sizes)
        async with outside(amqp_url) as it:
            queue = await it.channel.get_queue(CALLBACKS)
            came = []
            for _ in sizes:
                message = await queue.get(no_ack=True)
                assert message is not None
                came.append(len(message.body))
    assert came == sizes


async def test_refused_where_no_queue_is_bound_and_only_that_one(amqp_url: str) -> None:
    async with publishing(amqp_url) as publisher:
        good, lost, other = (
            publisher.publish(outgoing()),
            publisher.publish(outgoing("nowhere")),
            publisher.publish(outgoing()),
        )
        await asyncio.gather(good, other)
        with pytest.raises(PublishRefusedError, match="no queue"):
            await lost


async def test_trap_1_publishes_with_one_message_id_are_never_taken_for_confirmed(
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


async def test_row_9_what_was_deleted_is_declared_again_and_the_next_publish_arrives(
    amqp_url: str,
) -> None:
    async with publishing(amqp_url) as publisher, outside(amqp_url) as it:
        await it.channel.queue_delete(DEAD)
        with pytest.raises(PublishRefusedError):
            await publisher.publish(outgoing(DEAD))

        async def arrives() -> bool:
            # RabbitMQ may leave a publish unanswered while it makes the queue again
            try:
                await publisher.publish(outgoing(DEAD))
            except (PublishRefusedError, PublishUnknownError):
                return False
            return True

        await until(arrives, 45)


async def test_row_15_headers_beyond_a_frame_are_an_error_and_no_lost_connection(
    amqp_url: str,
) -> None:
    async with publishing(amqp_url) as publisher:
        with pytest.raises(UnpublishableError, match="headers are larger"):
            await publisher.publish(outgoing(large="h" * 200_000))
        await publisher.publish(outgoing())


async def test_row_2_unknown_within_5_seconds_when_the_broker_is_suspended(
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

        await until(confirmed, 30)


async def test_row_2_missed_heartbeats_end_the_connection_and_not_the_service(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # aiormq cancels whoever waits on such a connection; 40 s of it are in the acceptance lane
    monkeypatch.setattr("shared.amqp.connection.HEARTBEAT", 1)
    health = Health()
    publisher = Publisher(own_broker.url, name="test", topology=topology(), health=health)
    task = asyncio.create_task(publisher.run())
    await until(lambda: health.ready)
    own_broker.suspend()
    await until(lambda: not health.ready)
    own_broker.resume()
    await until(lambda: health.ready or task.done(), 30)
    assert not task.done()
    await publisher.publish(outgoing())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_unknown_at_once_when_the_connection_breaks(own_broker: Broker) -> None:
    async with publishing(own_broker.url) as publisher:
        own_broker.suspend()
        pending = publisher.publish(outgoing())
        own_broker.kill()
        with pytest.raises(PublishUnknownError):
            await asyncio.wait_for(asyncio.shield(pending), 3)
        with pytest.raises(PublishRefusedError, match="not connected"):
            await publisher.publish(outgoing())


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        (CALLBACKS, {"x-queue-type": "classic"}),
        ("callbacks.retry.1s", {"x-queue-type": "quorum", "x-message-ttl": 7}),
        (DEAD, {"x-queue-type": "quorum", "x-max-length": 5}),
    ],
)
async def test_row_14_a_queue_with_other_arguments_ends_the_start_and_is_named(
    amqp_url: str, tmp_path: Path, queue: str, arguments: dict[str, Any]
) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True, arguments=arguments)
    with running(tmp_path, amqp_url) as service:
        assert await service.exit_code() == 1
        told = [line for line in service.lines if line["level"] == "CRITICAL"]
        assert told
        assert all(f"'{queue}'" in line["message"] for line in told)
        assert all("inequivalent arg" in line["message"] for line in told)
        assert "Traceback" not in service.output
