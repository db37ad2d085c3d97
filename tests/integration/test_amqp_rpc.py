"""RPC: a request gets a response, or had no effect, or its effect is unknown."""

import asyncio
import json
import logging
from collections import defaultdict
from typing import Any

import aio_pika
import pytest
from prometheus_client import REGISTRY

from shared.amqp.rpc import ANONYMOUS, RequestContext
from shared.amqp.rpc_client import NoResponseError, UnavailableError
from shared.contracts.requests import Failure, FailureCode, FieldError
from shared.errors import InfrastructureError
from tests.fakes.rpc import QUEUE, echo, request, rpc_client, rpc_server
from tests.fakes.waiting import until


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
