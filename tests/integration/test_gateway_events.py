"""E1 over HTTP: a posted event reaches its exchange, or the response is an error."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from deploy.local.broker import Broker
from services.ingestion.app import SCHEMA
from shared.postgres.migrations import migrate
from tests.fakes.alarms import memory_alarm
from tests.fakes.gateway import Caller, Response, base_url, calling, gateway, ticket
from tests.fakes.ingesting import KNOWN_EVENTS, RUN_INGESTION, ingestion_client
from tests.fakes.service import Service, running
from tests.fakes.system import fresh_database
from tests.fakes.waiting import until

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
EVENT = KNOWN_EVENTS[0]


@pytest.fixture
async def call(gateway_service: Service) -> AsyncIterator[Caller]:
    async with calling(await base_url(gateway_service)) as caller:
        await until(lambda: gateway_service.logged("publisher is ready"))
        yield caller


@asynccontextmanager
async def events_queue(amqp_url: str) -> AsyncIterator[AbstractQueue]:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue("events")
        await queue.purge()
        yield queue


@pytest.fixture
async def events(call: Caller, shared_amqp_url: str) -> AsyncIterator[AbstractQueue]:
    """Yield the work queue; the gateway has declared it before ingestion ran."""
    assert call
    async with events_queue(shared_amqp_url) as queue:
        yield queue


async def next_event(queue: AbstractQueue) -> AbstractIncomingMessage | None:
    """Return the next event of the queue, if any; confirmed events are there already."""
    return await queue.get(no_ack=True, fail=False)


@pytest.mark.parametrize("event", KNOWN_EVENTS, ids=lambda event: event["event"])
async def test_e1_an_event_is_queued_unchanged_before_ingestion_has_ever_run(
    call: Caller, events: AbstractQueue, event: dict[str, Any]
) -> None:
    raw = json.dumps(event, indent=3)[:-1] + ', "occurred_at" : "2026-11-20T15:00:00+03:00" }\n'
    response = await call("POST", "/v1/events", raw=raw, traceparent=TRACE)
    assert response.status == 202, response.text
    assert response.headers["Cache-Control"] == "no-store"
    message = await next_event(events)
    assert message
    assert message.body == raw.encode()
    assert message.exchange == "events"
    assert message.routing_key == f"{event['from_service']}.{event['event']}"
    assert (message.type, message.content_type) == ("Event", "application/json")
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.headers["traceparent"] == TRACE
    assert message.timestamp
    assert abs(message.timestamp.timestamp() - time.time()) < 30
    assert response.json == {"id": message.message_id}


@pytest.mark.parametrize("key", [None, "order-7"])
@pytest.mark.parametrize("event_id", [None, "e-1"])
async def test_e3_the_response_has_the_id_that_identifies_a_repeat(
    call: Caller, events: AbstractQueue, key: str | None, event_id: str | None
) -> None:
    body = EVENT if event_id is None else EVENT | {"event_id": event_id}
    given = {} if key is None else {"Idempotency_Key": key}
    responses = [await call("POST", "/v1/events", body, **given) for _ in range(2)]
    messages = [await next_event(events) for _ in range(2)]
    ids = [message.message_id for message in messages if message]
    assert ids == [key, key] if key else len(set(ids)) == 2
    assert [response.json["id"] for response in responses] == ([event_id] * 2 if event_id else ids)


def body_with(value: str) -> str:
    return f'{{"from_service": "a", "event": "b", "details": {{"x": {value}}}}}'


@pytest.mark.parametrize(
    ("raw", "fields"),
    [
        (json.dumps({"from_service": "a.b", "event": "", "detials": {}}), None),
        (json.dumps(EVENT | {"expires_at": "tomorrow"}), {"expires_at"}),
        (json.dumps(EVENT | {"event_id": "two words"}), {"event_id"}),
        ("[]", {""}),
        (json.dumps([EVENT]), {""}),
        ("null", {""}),
        (body_with('"\\u0000"'), {"details"}),
        (body_with("1e999999"), {"details"}),
        (body_with("[" * 160 + "]" * 160), {"details"}),
    ],
)
async def test_e1_and_row_26_an_invalid_event_is_422_with_every_rejected_field(
    call: Caller, events: AbstractQueue, raw: str, fields: set[str] | None
) -> None:
    response = await call("POST", "/v1/events", raw=raw)
    expected = fields or {"from_service", "event", "details", "detials"}
    assert response.rejected_fields() == expected
    assert await next_event(events) is None


@pytest.mark.parametrize(
    "raw",
    ["", "{", body_with("NaN"), body_with('"\\ud800"'), body_with("[" * 10_000 + "]" * 10_000)],
    ids=range(5),
)
async def test_row_26_invalid_json_is_400(call: Caller, events: AbstractQueue, raw: str) -> None:
    (await call("POST", "/v1/events", raw=raw)).problem(400)
    assert await next_event(events) is None


async def test_e1_the_url_of_a_producer_may_have_a_query(call: Caller) -> None:
    assert (await call("POST", "/v1/events?source=crm", EVENT)).status == 202


async def test_finding_d5_row_15_and_33_rejected_requests_publish_nothing(
    call: Caller, events: AbstractQueue
) -> None:
    large = json.dumps(EVENT | {"details": {"x": "x" * 262_144}})
    (await call("POST", "/v1/events", raw=large)).problem(413)
    (await call("POST", "/v1/events", raw="a=1", Content_Type="text/plain")).problem(415)
    (await call("POST", "/v1/events", EVENT, X_Service_Ticket="canary")).problem(401)
    expired = ticket("shop", exp=int(time.time()) - 1)
    (await call("POST", "/v1/events", EVENT, Authorization=f"Bearer {expired}")).problem(401)
    wrong = await call("POST", "/v1/events", EVENT, Idempotency_Key="two words")
    assert wrong.rejected_fields() == {"Idempotency-Key"}
    (await call("GET", "/v1/events")).problem(405)
    assert await next_event(events) is None


# S9
async def test_finding_c15_a_ticket_publishes_events_of_its_own_service_only(
    call: Caller, events: AbstractQueue
) -> None:
    response = await call.as_client("shop")("POST", "/v1/events", EVENT)
    assert response.problem(403)["errors"] == [
        {"field": "from_service", "message": "must be the ticket's client id"}
    ]
    assert await next_event(events) is None
    assert (await call.as_client("auth")("POST", "/v1/events", EVENT)).status == 202
    assert await next_event(events)


async def test_the_log_line_has_the_id_of_the_event_and_none_of_its_details(
    call: Caller, events: AbstractQueue, gateway_service: Service
) -> None:
    body = EVENT | {"details": {"token": "details-canary"}, "event_id": "logged-7"}
    caller = call.as_client("auth")
    assert (await caller("POST", "/v1/events", body, traceparent="nonsense")).status == 202
    message = await next_event(events)
    assert message
    assert "traceparent" not in message.headers
    [line] = await until(lambda: gateway_service.logged("http request", event_id="logged-7"))
    assert (line["client_id"], line["route"], line["status"]) == ("auth", "/v1/events", 202)
    assert "canary" not in gateway_service.output


@pytest.fixture
def ingestion_database(database_url: str) -> Iterator[str]:
    """Yield the URL of an empty database for ingestion."""
    with fresh_database(database_url) as url:
        asyncio.run(migrate(url, SCHEMA))
        yield url


async def test_e1_e3_an_event_from_before_the_first_start_of_ingestion_takes_effect_once(
    tmp_path: Path, amqp_url: str, ingestion_database: str
) -> None:
    async def post(call: Caller) -> str:
        response = await call("POST", "/v1/events", EVENT, Idempotency_Key="signup-7")
        return str(response.json["id"]) if response.status == 202 else ""

    with gateway(tmp_path, amqp_url) as service:
        async with calling(await base_url(service)) as call:
            await until(lambda: post(call))
            settings = {"RINGBACK_DATABASE_URL": ingestion_database}
            with running(tmp_path, amqp_url, settings, RUN_INGESTION) as ingestion:
                await ingestion.ready()
                async with ingestion_client(amqp_url) as client:
                    await post(call)
                    await client.posting("signup-7")

                    async def duplicate_counted() -> bool:
                        name = "ringback_events_total"
                        return await ingestion.metric(name, outcome="duplicate") > 0

                    await until(duplicate_counted)
                    assert len(client.postings_of("signup-7")) == 1


@pytest.fixture
async def own_gateway(tmp_path: Path, own_broker: Broker) -> AsyncIterator[Caller]:
    """Yield a caller of a gateway whose broker the test may stop."""
    with gateway(tmp_path, own_broker.url) as service:
        async with calling(await base_url(service)) as call:
            await until(lambda: service.logged("publisher is ready"))
            yield call


async def post(call: Caller) -> tuple[Response, float]:
    loop = asyncio.get_running_loop()
    started = loop.time()
    response = await call("POST", "/v1/events", EVENT)
    return response, loop.time() - started


async def until_accepted(call: Caller) -> None:
    async def accepted() -> bool:
        return (await post(call))[0].status == 202

    await until(accepted)


@pytest.mark.slow
async def test_row_6_an_alarm_is_503_within_5_seconds_until_it_clears(
    own_gateway: Caller, own_broker: Broker
) -> None:
    with memory_alarm(own_broker):

        async def reported() -> bool:
            return "alarm" in (await own_gateway("GET", "/readyz")).json["parts"]["publisher"]

        await until(reported, 5)  # before any request during the alarm
        response, seconds = await post(own_gateway)
        assert "alarm" in response.problem(503)["detail"]
        assert int(response.headers["Retry-After"]) > 0
        assert seconds < 1
    await until_accepted(own_gateway)


@pytest.mark.slow
async def test_rows_1_and_2_a_suspended_broker_is_504_and_a_stopped_one_is_503(
    own_gateway: Caller, own_broker: Broker
) -> None:
    await until_accepted(own_gateway)
    own_broker.suspend()
    try:
        response, seconds = await post(own_gateway)
        problem = response.problem(504)
        assert "unknown" in problem["detail"]
        assert "event_id or Idempotency-Key" in problem["detail"]
        assert 4 < seconds < 6.5
    finally:
        own_broker.resume()
    await until_accepted(own_gateway)
    await asyncio.to_thread(own_broker.sync)
    await asyncio.to_thread(own_broker.kill)

    async def unavailable() -> bool:
        return (await post(own_gateway))[0].status == 503

    await until(unavailable)
    await asyncio.to_thread(own_broker.start)
    await until_accepted(own_gateway)
    async with events_queue(own_broker.url) as queue:
        await until_accepted(own_gateway)
        assert await next_event(queue)
