"""M1: batches of an import in flight, with a program that plays the part of mailings."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.fakes.gateway import Caller, Response, base_url, calling, gateway
from tests.fakes.service import Service
from tests.fakes.waiting import until

# A literal, not a constant of the product.
QUEUE = "mailings.requests"
BATCH = 1000
IMPORTED = {"ok": {"created": BATCH, "updated": 0, "failed": 0, "errors": []}}
UNAVAILABLE = {"error": {"code": "unavailable", "detail": "the database is down", "errors": []}}


@pytest.fixture(scope="module")
def gateway_service(
    shared_amqp_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("gateway")
    with gateway(directory, shared_amqp_url, {"RINGBACK_GATEWAY_REQUEST_TIMEOUT": "3"}) as service:
        yield service


@pytest.fixture
async def call(gateway_service: Service) -> AsyncIterator[Caller]:
    await until(lambda: gateway_service.logged("broker is ready"))
    async with calling(await base_url(gateway_service)) as caller:
        yield caller


class Requests:
    """The requests that have arrived, and how many have no response."""

    def __init__(self) -> None:
        self.count = 0
        self.waiting = 0
        self.most = 0
        self.two = asyncio.Event()


@asynccontextmanager
async def responding(
    amqp_url: str, response: Callable[[Requests, int], Any]
) -> AsyncIterator[Requests]:
    """Respond to each request with the result of a coroutine, which gets its number from 1."""
    requests = Requests()
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(
            QUEUE, durable=True, arguments={"x-queue-type": "classic"}
        )

        async def respond(message: AbstractIncomingMessage) -> None:
            requests.count += 1
            requests.waiting += 1
            requests.most = max(requests.most, requests.waiting)
            if requests.waiting > 1:
                requests.two.set()
            body = await response(requests, requests.count)
            requests.waiting -= 1
            await channel.default_exchange.publish(
                aio_pika.Message(json.dumps(body).encode(), correlation_id=message.correlation_id),
                routing_key=str(message.reply_to),
                mandatory=False,
            )
            await message.ack()

        tag = await queue.consume(respond)
        yield requests
        await queue.cancel(tag)


async def import_phones(call: Caller, *numbers: int) -> Response:
    text = "phone,timezone\n" + "".join(f"7{9_000_000_000 + n},UTC\n" for n in numbers)
    return await call("POST", "/v1/clients/import", raw=text, Content_Type="text/csv")


async def test_m1_two_batches_are_in_flight_and_not_more(
    call: Caller, shared_amqp_url: str
) -> None:
    async def when_two_wait(requests: Requests, number: int) -> Any:
        if number < 5:  # the last one waits alone
            await requests.two.wait()
        return IMPORTED

    async with responding(shared_amqp_url, when_two_wait) as requests:
        done = await import_phones(call, *range(5 * BATCH))
    assert (done.status, done.json["created"]) == (200, 5 * BATCH), done.text
    assert (requests.count, requests.most) == (5, 2)


async def test_m1_a_batch_waits_for_the_one_before_with_the_same_phone(
    call: Caller, shared_amqp_url: str
) -> None:
    async def unless_another_comes(requests: Requests, _: int) -> Any:
        try:
            async with asyncio.timeout(0.5):
                await requests.two.wait()
        except TimeoutError:
            pass
        return IMPORTED

    async with responding(shared_amqp_url, unless_another_comes) as requests:
        done = await import_phones(call, *range(BATCH), *range(BATCH - 1, 2 * BATCH - 1))
    assert (done.status, requests.count, requests.most) == (200, 2, 1)


@pytest.mark.parametrize(
    ("second", "status"), [(UNAVAILABLE, 503), (IMPORTED, 504)], ids=["nothing", "some"]
)
async def test_m1_an_import_is_503_only_if_no_batch_was_imported(
    call: Caller, shared_amqp_url: str, second: Any, status: int
) -> None:
    async def both_at_once(requests: Requests, number: int) -> Any:
        await requests.two.wait()
        return UNAVAILABLE if number == 1 else second

    async with responding(shared_amqp_url, both_at_once):
        failed = await import_phones(call, *range(2 * BATCH))
    detail = failed.problem(status)["detail"]
    assert "the database is down" in detail
    assert ("At least 1000 lines were imported before" in detail) == (status == 504)
