"""A request is answered, known not to be done, or of unknown outcome; never anything between."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aio_pika
import pytest

from deploy.local.broker import Broker
from shared.amqp.rpc import ANONYMOUS, RequestContext
from shared.amqp.rpc_client import NoResponseError, RpcClient, UnavailableError
from shared.amqp.rpc_server import Handler, RpcServer
from shared.contracts.requests import Failure, FailureCode, FieldError
from shared.errors import InfrastructureError
from shared.process.health import Health
from shared.topology import Queue, Topology
from tests.fakes.waiting import until

QUEUE = "things.requests"
TOPOLOGY = Topology((), (Queue(QUEUE, {"x-queue-type": "classic"}),), ())


async def echo(by: RequestContext, body: bytes) -> Any:
    return {"by": list(by), "said": json.loads(body)}


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[RpcClient]:
    requester = RpcClient(url, name="context", health=Health())
    task = asyncio.create_task(requester.run())
    try:
        await asyncio.wait_for(requester.ready(), 30)
        yield requester
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def answering(
    url: str, handlers: Mapping[str, Handler], prefetch: int = 100
) -> AsyncIterator[tuple[RpcServer, Health]]:
    health = Health()
    responder = RpcServer(
        QUEUE,
        handlers,
        url=url,
        name="answerer",
        topology=TOPOLOGY,
        prefetch=prefetch,
        health=health,
    )
    task = asyncio.create_task(responder.run())
    try:
        await until(lambda: health.ready, 30)
        yield responder, health
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(
    requester: RpcClient,
    operation: str = "Echo",
    said: Any = 1,
    timeout: float = 10,  # noqa: ASYNC109 - as of the function that is tested
    by: RequestContext = ANONYMOUS,
) -> Any:
    body = json.dumps(said).encode()
    return await requester.request(QUEUE, operation, body, context=by, timeout=timeout)


async def queued(amqp_url: str, *, consumers: int, messages: int) -> bool:
    """Whether the queue has so many consumers and waiting requests."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        queue = await (await connection.channel()).declare_queue(QUEUE, passive=True)
    found = queue.declaration_result
    return (found.consumer_count, found.message_count) == (consumers, messages)


async def test_many_at_once_each_gets_its_own_answer_in_any_order(amqp_url: str) -> None:
    async def slow_if_even(_: RequestContext, body: bytes) -> Any:
        number = json.loads(body)[0]
        await asyncio.sleep(0.05 if number % 2 == 0 else 0)
        return {"number": number, "size": len(body)}

    async with answering(amqp_url, {"Echo": slow_if_even}), asking(amqp_url) as context:
        # Larger than a frame, too: the body comes in pieces.
        said = [[number, "x" * (200_000 if number % 50 == 0 else 10)] for number in range(300)]
        answers = await asyncio.gather(*(ask(context, said=one) for one in said))
    assert [answer["number"] for answer in answers] == list(range(300))
    assert answers[50]["size"] > 200_000


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    "by",
    [
        ANONYMOUS,
        RequestContext("Müller & Söhne"),
        RequestContext(None, TRACE),
        RequestContext("shop", TRACE),
    ],
)
async def test_s9_the_client_id_and_the_trace_are_passed_on_and_none_is_none(
    amqp_url: str, by: RequestContext
) -> None:
    async with answering(amqp_url, {"Echo": echo}), asking(amqp_url) as context:
        assert (await ask(context, by=by))["by"] == list(by)


async def test_failures_are_values_and_errors_become_failures(
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
        raise InfrastructureError("the database does not answer")

    async def bug(_: RequestContext, __: bytes) -> Any:
        raise TimeoutError("a secret-canary in an error's text")

    async def unspeakable(_: RequestContext, __: bytes) -> Any:
        return object()

    async def endless(_: RequestContext, __: bytes) -> Any:
        return "x" * (9 << 20)

    handlers = {
        "Invalid": invalid,
        "Lost": lost,
        "Bug": bug,
        "Unspeakable": unspeakable,
        "Endless": endless,
        "Echo": echo,
    }
    async with answering(amqp_url, handlers), asking(amqp_url) as context:
        assert await ask(context, "Invalid") == wrong
        assert await ask(context, "Lost") == Failure(
            code=FailureCode.UNAVAILABLE, detail="the database does not answer"
        )
        internal = Failure(code=FailureCode.INTERNAL, detail="internal error")
        with caplog.at_level(logging.ERROR):
            assert await ask(context, "Bug") == internal
            assert await ask(context, "Unspeakable") == internal
        assert [record.exc_info is not None for record in caplog.records] == [True, True]
        assert (await ask(context, "Endless")).code == FailureCode.INVALID
        assert (await ask(context, "Nonsense")).code == FailureCode.UNAVAILABLE
        assert (await ask(context, said="still here"))["said"] == "still here"


async def test_unavailable_where_nobody_has_declared_the_queue(amqp_url: str) -> None:
    async with asking(amqp_url) as context:
        with pytest.raises(UnavailableError, match="no service consumes"):
            await ask(context)


async def test_unavailable_at_once_when_too_many_wait_already(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.amqp.rpc_client.MAX_IN_FLIGHT", 2)
    go = asyncio.Event()

    async def wait(_: RequestContext, __: bytes) -> Any:
        await go.wait()

    async with answering(amqp_url, {"Wait": wait}), asking(amqp_url) as context:
        waiting = [asyncio.create_task(ask(context, "Wait")) for _ in range(2)]
        await asyncio.sleep(0)  # they run as far as their requests
        with pytest.raises(UnavailableError, match="2 requests are waiting"):
            await ask(context, "Wait")
        go.set()
        await asyncio.gather(*waiting)
        await ask(context, "Wait")


async def test_no_answer_in_time_and_what_waits_in_the_queue_past_its_deadline_is_dropped(
    amqp_url: str,
) -> None:
    seen: list[int] = []

    async def note(_: RequestContext, body: bytes) -> Any:
        seen.append(json.loads(body))

    async with answering(amqp_url, {"Note": note}):
        pass
    async with asking(amqp_url) as context:
        with pytest.raises(NoResponseError, match=r"within 0\.2 s"):
            await ask(context, "Note", 1, timeout=0.2)
        async with answering(amqp_url, {"Note": note}):
            await ask(context, "Note", 2)
    assert seen == [2]


async def test_a_handler_past_the_deadline_is_cancelled_and_leaves_its_place(
    amqp_url: str,
) -> None:
    cancelled = asyncio.Event()

    async def hang(_: RequestContext, __: bytes) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    handlers = {"Hang": hang, "Echo": echo}
    async with answering(amqp_url, handlers, prefetch=1), asking(amqp_url) as context:
        with pytest.raises(NoResponseError):
            await ask(context, "Hang", timeout=0.3)
        await asyncio.wait_for(cancelled.wait(), 5)
        assert (await ask(context))["said"] == 1


async def test_no_more_run_at_once_than_the_prefetch(amqp_url: str) -> None:
    running = most = 0

    async def count(_: RequestContext, __: bytes) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    async with answering(amqp_url, {"Count": count}, prefetch=3), asking(amqp_url) as context:
        await asyncio.gather(*(ask(context, "Count") for _ in range(20)))
    assert most == 3


async def test_a_request_whose_service_dies_over_it_is_answered_by_another(amqp_url: str) -> None:
    begun = asyncio.Event()

    async def hang(_: RequestContext, __: bytes) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async with asking(amqp_url) as context:
        async with answering(amqp_url, {"Echo": hang}):
            answer = asyncio.create_task(ask(context))
            await begun.wait()
        async with answering(amqp_url, {"Echo": echo}):
            assert (await answer)["said"] == 1


async def test_drained_answers_what_is_in_flight_and_takes_nothing_more(amqp_url: str) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def wait(_: RequestContext, __: bytes) -> Any:
        begun.set()
        await go.wait()
        return "answered"

    async with asking(amqp_url) as context:
        async with answering(amqp_url, {"Wait": wait, "Echo": echo}) as (responder, _):
            first = asyncio.create_task(ask(context, "Wait"))
            await begun.wait()
            draining = asyncio.create_task(responder.drain(10))
            await until(lambda: queued(amqp_url, consumers=0, messages=0))
            second = asyncio.create_task(ask(context))
            await until(lambda: queued(amqp_url, consumers=0, messages=1))
            go.set()
            await draining
            assert await first == "answered"
        async with answering(amqp_url, {"Echo": echo}):
            assert (await second)["said"] == 1


async def test_drained_what_does_not_end_in_time_goes_back_and_another_answers_it(
    amqp_url: str,
) -> None:
    begun = asyncio.Event()

    async def hang(_: RequestContext, __: bytes) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async with asking(amqp_url) as context:
        async with answering(amqp_url, {"Echo": hang}) as (responder, _):
            answer = asyncio.create_task(ask(context))
            await begun.wait()
            await responder.drain(0.1)
            await asyncio.sleep(0.1)  # an ack, were there one, would be written now
        async with answering(amqp_url, {"Echo": echo}):
            assert (await answer)["said"] == 1


async def test_what_is_no_request_of_ours_is_dropped_and_answers_go_on(amqp_url: str) -> None:
    async with answering(amqp_url, {"Echo": echo}), asking(amqp_url) as context:
        connection = await aio_pika.connect(amqp_url)
        async with connection:
            channel = await connection.channel()
            aimed = await channel.declare_queue("aimed-at", exclusive=True)
            for properties in ({}, {"reply_to": "aimed-at"}):
                message = aio_pika.Message(b"1", type="Echo", **properties)  # type: ignore[arg-type]
                await channel.default_exchange.publish(message, routing_key=QUEUE)
            assert (await ask(context))["said"] == 1
            assert await aimed.get(fail=False) is None
            left = await channel.declare_queue(QUEUE, passive=True)
            assert left.declaration_result.message_count == 0


async def test_the_queue_is_declared_again_when_somebody_deletes_it(amqp_url: str) -> None:
    async with answering(amqp_url, {"Echo": echo}), asking(amqp_url) as context:
        connection = await aio_pika.connect(amqp_url)
        async with connection:
            await (await connection.channel()).queue_delete(QUEUE)

        async def answered() -> bool:
            try:
                return bool(await ask(context, timeout=1))
            except (UnavailableError, NoResponseError):
                return False

        await until(answered, 30)


async def test_row_1_broker_killed_unknown_at_once_then_unavailable_then_answers_again(
    own_broker: Broker,
) -> None:
    begun = asyncio.Event()

    async def hang(_: RequestContext, __: bytes) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(answering(own_broker.url, {"Hang": hang, "Echo": echo}))
        context = await stack.enter_async_context(asking(own_broker.url))
        pending = asyncio.create_task(ask(context, "Hang"))
        await begun.wait()
        own_broker.kill()
        with pytest.raises(NoResponseError, match="connection was lost"):
            await asyncio.wait_for(pending, 3)
        with pytest.raises(UnavailableError, match="not connected"):
            await ask(context)
        own_broker.start()

        async def answered() -> bool:
            try:
                return bool(await ask(context, timeout=2))
            except (UnavailableError, NoResponseError):
                return False

        await until(answered, 30)


async def test_row_2_broker_suspended_unknown_in_time_and_a_repeat_is_harmless(
    own_broker: Broker,
) -> None:
    done: Counter[str] = Counter()

    async def once(_: RequestContext, body: bytes) -> Any:
        name = json.loads(body)
        done[name] += 1
        return done[name]

    async with answering(own_broker.url, {"Once": once}), asking(own_broker.url) as context:
        own_broker.suspend()
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(NoResponseError):
            await ask(context, "Once", "order 7", timeout=1)
        assert loop.time() - started < 2
        own_broker.resume()

        async def answered() -> Any:
            try:
                return await ask(context, "Once", "order 7", timeout=2)
            except (UnavailableError, NoResponseError):
                return None

        # Whether the first one was done is unknown: the repeat is its first or its second time.
        assert await until(answered, 30) in (1, 2)


async def test_row_6_memory_alarm_unavailable_within_5_seconds_and_answers_again_after_it(
    own_broker: Broker,
) -> None:
    health = Health()
    requester = RpcClient(own_broker.url, name="context", health=health)
    task = asyncio.create_task(requester.run())
    async with answering(own_broker.url, {"Echo": echo}):
        await asyncio.wait_for(requester.ready(), 30)
        before = own_broker.ctl("eval", "vm_memory_monitor:get_vm_memory_high_watermark().").strip()
        own_broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:

            async def refused() -> bool:
                try:
                    await ask(requester, timeout=1)
                except NoResponseError:
                    return False
                except UnavailableError as error:
                    return "alarm" in str(error)
                return False

            await until(refused, 5)
            assert "alarm" in str(health.report()["parts"])
        finally:
            own_broker.ctl("set_vm_memory_high_watermark", before)
        await asyncio.wait_for(requester.ready(), 30)
        assert (await ask(requester))["said"] == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
