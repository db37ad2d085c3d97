"""RPC: a request gets a response, or had no effect, or its effect is unknown."""

import asyncio
import json
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aio_pika
import pytest
from prometheus_client import REGISTRY

from deploy.local.broker import Broker
from shared.amqp.rpc import ANONYMOUS, RequestContext
from shared.amqp.rpc_client import NoResponseError, RpcClient, UnavailableError
from shared.amqp.rpc_server import Handler, RpcServer
from shared.amqp.subscription import Subscription
from shared.contracts.requests import Failure, FailureCode, FieldError
from shared.errors import InfrastructureError
from shared.process.health import Health
from shared.topology import Queue, Topology
from tests.fakes.alarms import memory_alarm
from tests.fakes.waiting import until

QUEUE = "things.requests"
# As of the request queues.
ARGUMENTS: dict[str, str | int] = {"x-queue-type": "quorum", "x-delivery-limit": 20}
TOPOLOGY = Topology((), (Queue(QUEUE, ARGUMENTS),), ())


async def echo(context: RequestContext, body: bytes) -> Any:
    return {"context": list(context[:2]), "echo": json.loads(body)}


@asynccontextmanager
async def rpc_client(url: str) -> AsyncIterator[RpcClient]:
    client = RpcClient(url, name="test client", health=Health())
    task = asyncio.create_task(client.run())
    try:
        await asyncio.wait_for(client.ready(), 30)
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def rpc_server(
    url: str, handlers: Mapping[str, Handler], prefetch: int = 100
) -> AsyncIterator[tuple[RpcServer, Health]]:
    health = Health()
    server = RpcServer(
        QUEUE,
        handlers,
        url=url,
        name="test server",
        topology=TOPOLOGY,
        prefetch=prefetch,
        health=health,
    )
    task = asyncio.create_task(server.run())
    try:
        await until(lambda: health.ready)
        yield server, health
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def request(
    client: RpcClient,
    operation: str = "Echo",
    value: Any = 1,
    timeout: float = 10,  # noqa: ASYNC109 - as in the tested function
    context: RequestContext = ANONYMOUS,
) -> Any:
    body = json.dumps(value).encode()
    return await client.request(QUEUE, operation, body, context=context, timeout=timeout)


async def queued(amqp_url: str, *, consumers: int, messages: int) -> bool:
    """Return whether the queue has so many consumers and ready requests."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        queue = await (await connection.channel()).declare_queue(QUEUE, passive=True)
    found = queue.declaration_result
    return (found.consumer_count, found.message_count) == (consumers, messages)


async def test_concurrent_requests_get_their_own_responses_in_any_order(amqp_url: str) -> None:
    finished = defaultdict[int, asyncio.Event](asyncio.Event)

    async def swap_pairs(_: RequestContext, body: bytes) -> Any:
        number = json.loads(body)[0]
        if number % 2 == 0:
            await finished[number + 1].wait()
        finished[number].set()
        return {"number": number, "size": len(body)}

    async with rpc_server(amqp_url, {"Echo": swap_pairs}), rpc_client(amqp_url) as client:
        # Some bodies are larger than a frame.
        values = [[number, "x" * (200_000 if number % 50 == 0 else 10)] for number in range(300)]
        responses = await asyncio.gather(*(request(client, value=one) for one in values))
    assert [response["number"] for response in responses] == list(range(300))
    assert responses[50]["size"] > 200_000


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    "context",
    [
        ANONYMOUS,
        RequestContext("Müller & Söhne"),
        RequestContext(None, TRACE),
        RequestContext("shop", TRACE),
    ],
)
async def test_s9_the_client_id_and_the_trace_context_reach_the_handler(
    amqp_url: str, context: RequestContext
) -> None:
    async with rpc_server(amqp_url, {"Echo": echo}), rpc_client(amqp_url) as client:
        assert (await request(client, context=context))["context"] == list(context[:2])


async def test_a_failure_that_is_too_large_for_a_message_is_shortened(amqp_url: str) -> None:
    """A larger message would close the channel, and every other request would get no response."""

    async def invalid(_: RequestContext, __: bytes) -> Any:
        return Failure(code=FailureCode.INVALID, detail="x" * (20 << 20))

    async with rpc_server(amqp_url, {"Echo": echo, "Bad": invalid}), rpc_client(amqp_url) as client:
        failure, response = await asyncio.gather(request(client, "Bad"), request(client))
    assert failure.code is FailureCode.INVALID
    assert failure.detail == "the description of the error exceeds 8388608 bytes"
    assert response["echo"] == 1


async def test_a_malformed_reply_to_is_handled_once(amqp_url: str) -> None:
    """RabbitMQ closes the connection over it. The service must not receive it again."""
    handled: list[bytes] = []

    async def handle(_: RequestContext, body: bytes) -> Any:
        handled.append(body)
        return body.decode()

    async with (
        rpc_server(amqp_url, {"Echo": handle}) as (_, health),
        rpc_client(amqp_url) as client,
        await aio_pika.connect(amqp_url) as connection,
    ):
        channel = await connection.channel()
        forged = aio_pika.Message(b"1", type="Echo", reply_to="amq.rabbitmq.reply-to.AAAA.BBBB")
        before = REGISTRY.get_sample_value("amqp_reconnects_total")
        await channel.default_exchange.publish(forged, routing_key=QUEUE)
        await until(lambda: REGISTRY.get_sample_value("amqp_reconnects_total") != before)
        await until(lambda: health.ready)
        assert await request(client, value=2) == "2"
    assert handled == [b"1", b"2"]


async def test_finding_a4_failures_are_values_and_errors_become_failures(
    amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Failure(
        code=FailureCode.INVALID,
        detail="1 field is wrong",
        errors=(FieldError(field="retry_params.base_delay", message="Field required"),),
    )

    async def invalid(_: RequestContext, __: bytes) -> Any:
        return wrong

    async def lost(_: RequestContext, __: bytes) -> Any:
        raise InfrastructureError("the connection is lost")

    async def unavailable(_: RequestContext, __: bytes) -> Any:
        raise InfrastructureError("the database is unavailable", effect_unknown=False)

    async def bug(_: RequestContext, __: bytes) -> Any:
        raise TimeoutError("a secret-canary in an error's text")

    async def unserializable(_: RequestContext, __: bytes) -> Any:
        return object()

    async def endless(_: RequestContext, __: bytes) -> Any:
        return "x" * (9 << 20)

    handlers = {
        "Invalid": invalid,
        "Lost": lost,
        "Unavailable": unavailable,
        "Bug": bug,
        "Unserializable": unserializable,
        "Endless": endless,
        "Echo": echo,
    }
    async with rpc_server(amqp_url, handlers), rpc_client(amqp_url) as client:
        assert await request(client, "Invalid") == wrong
        assert await request(client, "Lost") == Failure(
            code=FailureCode.UNKNOWN, detail="the connection is lost"
        )
        assert await request(client, "Unavailable") == Failure(
            code=FailureCode.UNAVAILABLE, detail="the database is unavailable"
        )
        internal = Failure(code=FailureCode.INTERNAL, detail="internal error")
        with caplog.at_level(logging.ERROR):
            assert await request(client, "Bug") == internal
            assert await request(client, "Unserializable") == internal
        assert [record.exc_info is not None for record in caplog.records] == [True, True]
        assert (await request(client, "Endless")).code == FailureCode.INVALID
        assert (await request(client, "Unknown")).code == FailureCode.UNAVAILABLE
        assert (await request(client, value="still here"))["echo"] == "still here"


async def test_a_request_to_a_missing_queue_is_unavailable(amqp_url: str) -> None:
    async with rpc_client(amqp_url) as client:
        with pytest.raises(UnavailableError, match="no service consumes"):
            await request(client)


async def test_a_request_beyond_the_limit_in_flight_is_unavailable_at_once(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.amqp.rpc_client.MAX_IN_FLIGHT", 2)
    release = asyncio.Event()

    async def wait(_: RequestContext, __: bytes) -> Any:
        await release.wait()

    async with rpc_server(amqp_url, {"Wait": wait}), rpc_client(amqp_url) as client:
        waiting = [asyncio.create_task(request(client, "Wait")) for _ in range(2)]
        await asyncio.sleep(0)  # let them send their requests
        with pytest.raises(UnavailableError, match="2 requests are waiting"):
            await request(client, "Wait")
        release.set()
        await asyncio.gather(*waiting)
        await request(client, "Wait")


async def test_a_request_is_dropped_from_the_queue_at_its_timeout(
    amqp_url: str,
) -> None:
    handled: list[int] = []

    async def record(_: RequestContext, body: bytes) -> Any:
        handled.append(json.loads(body))

    async with rpc_server(amqp_url, {"Note": record}):
        pass
    async with rpc_client(amqp_url) as client:
        with pytest.raises(NoResponseError, match=r"within 0\.2 s"):
            await request(client, "Note", 1, timeout=0.2)
        async with rpc_server(amqp_url, {"Note": record}):
            await request(client, "Note", 2)
    assert handled == [2]


async def test_a_handler_is_cancelled_at_the_timeout_and_frees_its_slot(
    amqp_url: str,
) -> None:
    cancelled = asyncio.Event()

    async def hang(_: RequestContext, __: bytes) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    handlers = {"Hang": hang, "Echo": echo}
    async with rpc_server(amqp_url, handlers, prefetch=1), rpc_client(amqp_url) as client:
        with pytest.raises(NoResponseError):
            await request(client, "Hang", timeout=0.3)
        await asyncio.wait_for(cancelled.wait(), 5)
        assert (await request(client))["echo"] == 1


async def test_concurrent_handlers_are_limited_by_the_prefetch(amqp_url: str) -> None:
    running = maximum = 0
    three = asyncio.Barrier(3)

    async def count(_: RequestContext, __: bytes) -> Any:
        nonlocal running, maximum
        running += 1
        maximum = max(maximum, running)
        await three.wait()
        running -= 1

    async with rpc_server(amqp_url, {"Count": count}, prefetch=3), rpc_client(amqp_url) as client:
        await asyncio.gather(*(request(client, "Count") for _ in range(21)))
    assert maximum == 3


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
            await asyncio.sleep(0.1)  # long enough for an ack
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


async def test_messages_that_are_not_valid_requests_are_dropped(amqp_url: str) -> None:
    async with rpc_server(amqp_url, {"Echo": echo}), rpc_client(amqp_url) as client:
        connection = await aio_pika.connect(amqp_url)
        async with connection:
            channel = await connection.channel()
            reply_queue = await channel.declare_queue("reply-queue", exclusive=True)
            for properties in ({}, {"reply_to": "reply-queue"}):
                message = aio_pika.Message(b"1", type="Echo", **properties)  # type: ignore[arg-type]
                await channel.default_exchange.publish(message, routing_key=QUEUE)
            assert (await request(client))["echo"] == 1
            assert await reply_queue.get(fail=False) is None
            queue = await channel.declare_queue(QUEUE, passive=True)
            assert queue.declaration_result.message_count == 0


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

    async def slow(context: RequestContext, body: bytes) -> Any:
        await asyncio.sleep(1)  # many checks
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
