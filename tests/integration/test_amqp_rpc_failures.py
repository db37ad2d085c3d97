"""RPC while servers stop and the broker fails: requests are repeated, or fail in time."""

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import aio_pika
import pytest

from deploy.local.broker import Broker
from shared.amqp.confirms import Confirms
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_client import NoResponseError, RpcClient, UnavailableError
from shared.amqp.subscription import Subscription
from shared.process.health import Health
from tests.fakes.alarms import memory_alarm
from tests.fakes.rpc import QUEUE, echo, request, rpc_client, rpc_server
from tests.fakes.waiting import until


async def queued(amqp_url: str, *, consumers: int, messages: int) -> bool:
    """Return whether the queue has so many consumers and ready requests."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        queue = await (await connection.channel()).declare_queue(QUEUE, passive=True)
    found = queue.declaration_result
    return (found.consumer_count, found.message_count) == (consumers, messages)


async def test_another_server_handles_the_request_of_one_that_dies(amqp_url: str) -> None:
    started_event = asyncio.Event()

    async def hang(_: RequestContext, __: bytes) -> Any:
        started_event.set()
        await asyncio.Event().wait()

    async with rpc_client(amqp_url) as client:
        async with rpc_server(amqp_url, {"Echo": hang}):
            response = asyncio.create_task(request(client))
            await started_event.wait()
        async with rpc_server(amqp_url, {"Echo": echo}):
            assert (await response)["echo"] == 1


async def test_a_draining_server_finishes_only_requests_in_progress(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_event, release, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
    stop = Subscription.stop

    async def observed_stop(subscription: Subscription) -> None:
        await stop(subscription)
        cancelled.set()

    monkeypatch.setattr(Subscription, "stop", observed_stop)

    async def wait(_: RequestContext, __: bytes) -> Any:
        started_event.set()
        await release.wait()
        return "responded"

    async with rpc_client(amqp_url) as client:
        async with rpc_server(amqp_url, {"Wait": wait, "Echo": echo}) as (server, _):
            first = asyncio.create_task(request(client, "Wait"))
            await started_event.wait()
            draining = asyncio.create_task(server.drain(10))
            await cancelled.wait()
            second = asyncio.create_task(request(client))
            # A quorum queue counts a cancelled consumer until its messages are acknowledged.
            await until(lambda: queued(amqp_url, consumers=1, messages=1))
            release.set()
            await draining
            assert await first == "responded"
        async with rpc_server(amqp_url, {"Echo": echo}):
            assert (await second)["echo"] == 1


async def test_another_server_handles_requests_that_a_drained_one_did_not_finish(
    amqp_url: str,
) -> None:
    started_event = asyncio.Event()

    async def hang(_: RequestContext, __: bytes) -> Any:
        started_event.set()
        await asyncio.Event().wait()

    async with rpc_client(amqp_url) as client:
        async with rpc_server(amqp_url, {"Echo": hang}) as (server, _):
            response = asyncio.create_task(request(client))
            await started_event.wait()
            await server.drain(0.1)
        async with rpc_server(amqp_url, {"Echo": echo}):
            assert (await response)["echo"] == 1


async def test_finding_a3_a_request_that_is_delivered_again_has_the_same_message_id(
    amqp_url: str,
) -> None:
    received: list[str | None] = []

    async def handle(context: RequestContext, _: bytes) -> Any:
        received.append(context.message_id)
        if len(received) == 1:
            await asyncio.Event().wait()  # until the connection is closed
        return None

    async with rpc_client(amqp_url) as client:
        async with rpc_server(amqp_url, {"Echo": handle}):
            response = asyncio.create_task(request(client))
            await until(lambda: received)
        async with rpc_server(amqp_url, {"Echo": handle}):
            await response
            await request(client)
    first, again, other = received
    assert first
    assert first == again != other


async def test_a_deleted_queue_is_declared_again(amqp_url: str) -> None:
    async with rpc_server(amqp_url, {"Echo": echo}), rpc_client(amqp_url) as client:
        connection = await aio_pika.connect(amqp_url)
        async with connection:
            await (await connection.channel()).queue_delete(QUEUE)

        async def responded() -> bool:
            try:
                return bool(await request(client, timeout=1))
            except (UnavailableError, NoResponseError):
                return False

        await until(responded)


async def test_row_5_a_channel_whose_requests_are_ignored_is_replaced(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when RabbitMQ does not notice on a channel that a queue has a new leader."""
    monkeypatch.setattr("shared.amqp.confirms.CONFIRM_TIMEOUT", 0.5)
    async with rpc_server(amqp_url, {"Echo": echo}), rpc_client(amqp_url) as client:
        session = client._flow.session  # noqa: SLF001 - no way to make RabbitMQ do so
        assert session is not None
        session.channel.on_confirm = lambda *_: None
        session.channel.on_delivery = lambda _: None
        with pytest.raises(NoResponseError, match="connection was lost"):
            await request(client)
        await client.ready()
        assert (await request(client, value=2))["echo"] == 2


async def test_row_5_a_service_that_is_only_slow_keeps_the_channel(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.amqp.confirms.CONFIRM_TIMEOUT", 0.2)
    monkeypatch.setattr("shared.amqp.confirms.CHECK_INTERVAL", 0.05)
    checks = 0
    check = Confirms._report_overdue  # noqa: SLF001 - nothing else shows that it has run

    def counted_check(confirms: Confirms[Any], now: float) -> bool:
        nonlocal checks
        checks += 1
        return check(confirms, now)

    monkeypatch.setattr(Confirms, "_report_overdue", counted_check)

    async def slow(context: RequestContext, body: bytes) -> Any:
        await until(lambda: checks > 10)  # 0.5 s or more: longer than CONFIRM_TIMEOUT
        return await echo(context, body)

    async with rpc_server(amqp_url, {"Echo": slow}), rpc_client(amqp_url) as client:
        assert (await request(client, value=1))["echo"] == 1


async def test_row_1_a_killed_broker_makes_requests_unknown_then_unavailable_until_it_returns(
    own_broker: Broker,
) -> None:
    started_event = asyncio.Event()

    async def hang(_: RequestContext, __: bytes) -> Any:
        started_event.set()
        await asyncio.Event().wait()

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(rpc_server(own_broker.url, {"Hang": hang, "Echo": echo}))
        client = await stack.enter_async_context(rpc_client(own_broker.url))
        pending = asyncio.create_task(request(client, "Hang"))
        await started_event.wait()
        own_broker.kill()
        with pytest.raises(NoResponseError, match="connection was lost"):
            await asyncio.wait_for(pending, 3)
        with pytest.raises(UnavailableError, match="not connected"):
            await request(client)
        own_broker.start()

        async def responded() -> bool:
            try:
                return bool(await request(client, timeout=2))
            except (UnavailableError, NoResponseError):
                return False

        await until(responded)


async def test_row_2_a_suspended_broker_makes_requests_unknown_in_time(
    own_broker: Broker,
) -> None:
    done: Counter[str] = Counter()

    async def count_calls(_: RequestContext, body: bytes) -> Any:
        name = json.loads(body)
        done[name] += 1
        return done[name]

    async with (
        rpc_server(own_broker.url, {"CountCalls": count_calls}),
        rpc_client(own_broker.url) as client,
    ):
        own_broker.suspend()
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(NoResponseError):
            await request(client, "CountCalls", "order 7", timeout=1)
        assert loop.time() - started < 2
        own_broker.resume()

        async def responded() -> Any:
            try:
                return await request(client, "CountCalls", "order 7", timeout=2)
            except (UnavailableError, NoResponseError):
                return None

        # The outcome of the first request is unknown: the repeat is the first or second call.
        assert await until(responded, 30) in (1, 2)


async def test_row_6_requests_are_unavailable_during_a_memory_alarm(
    own_broker: Broker,
) -> None:
    health = Health()
    client = RpcClient(own_broker.url, name="test client", health=health)
    task = asyncio.create_task(client.run())
    async with rpc_server(own_broker.url, {"Echo": echo}):
        await asyncio.wait_for(client.ready(), 30)
        with memory_alarm(own_broker):

            async def refused() -> bool:
                try:
                    await request(client, timeout=1)
                except NoResponseError:
                    return False
                except UnavailableError as error:
                    return "alarm" in str(error)
                return False

            await until(refused, 5)
            assert "alarm" in str(health.report()["parts"])
        await asyncio.wait_for(client.ready(), 30)
        assert (await request(client))["echo"] == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
