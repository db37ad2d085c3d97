"""The sandbox's data APIs and producers, over HTTP and a real broker."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from tests.fakes.sandbox import Sandbox, running_sandbox

USERS = "/auth/api/v1/users/"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with running_sandbox(users=1000) as server:
        yield server


async def test_e5_a_list_of_users_ends_with_a_short_page(sandbox: Sandbox) -> None:
    pages: list[Any] = []
    query: dict[str, Any] = {"is_active": "True", "email_notifications": "True", "page_size": 300}
    while not pages or len(pages[-1]) == 300:
        pages.append(await sandbox.get(USERS, page_number=len(pages) + 1, **query))
    users = [user for page in pages for user in page]
    assert len({user["id"] for user in users}) == len(users) > 300
    assert all(user["is_active"] and user["email_notifications"] for user in users)
    fields = "id email phone timezone is_active email_notifications sms_notifications notifications"
    assert set(fields.split()) <= set(users[0])


async def test_e5_one_user_is_found_by_id_as_a_list_and_as_an_object(sandbox: Sandbox) -> None:
    [user] = await sandbox.get(USERS, page_number=17, page_size=1)
    assert await sandbox.get(USERS, id=user["id"]) == [user]
    assert await sandbox.get(USERS, id=user["id"], page_number=2) == []
    assert await sandbox.get(USERS, id=user["id"], is_active=str(not user["is_active"])) == []
    assert await sandbox.get(USERS, id=str(uuid4())) == []
    assert await sandbox.get(f"{USERS}{user['id']}/") == user
    assert await sandbox.get(f"{USERS}{user['id']}") == user
    async with sandbox.session.get(f"{USERS}{uuid4()}/") as response:
        assert response.status == 404


async def test_a_page_can_be_wrapped_in_results(sandbox: Sandbox) -> None:
    users = await sandbox.get(USERS, page_size=3)
    assert await sandbox.get(USERS, page_size=3, form="results") == {"results": users}


async def test_an_endless_list_always_has_a_next_page(sandbox: Sandbox) -> None:
    assert await sandbox.get(USERS, page_number=9999, page_size=10) == []
    assert len(await sandbox.get(USERS, page_number=9999, page_size=10, endless="True")) == 10


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("page_size=1000000000", "page_size"),
        ("page_number=0", "page_number"),
        ("id=7", "id"),
        ("is_active=perhaps", "is_active"),
        ("is_activ=True", "is_activ"),
        ("form=xml", "form"),
    ],
)
async def test_a_wrong_query_parameter_is_named(sandbox: Sandbox, query: str, field: str) -> None:
    async with sandbox.session.get(f"{USERS}?{query}") as response:
        assert response.status == 422
        errors = (await response.json(content_type=None))["errors"]
    assert [each["field"] for each in errors] == [field]


async def test_movies_series_and_reviews_link_to_each_other(sandbox: Sandbox) -> None:
    new = await sandbox.get("/fastapi/api/v1/movies/", new="True")
    everything = await sandbox.get("/fastapi/api/v1/movies/")
    assert 0 < len(new) < len(everything)
    assert (
        await sandbox.get("/fastapi/api/v1/movies/", page_size=2, page_number=2) == everything[2:4]
    )
    [first, *_] = await sandbox.get("/fastapi/api/v1/series/")
    review = await sandbox.get("/activity_api/api/v1/reviews/42")
    for url in (new[0]["url"], first["url"], review["movie"], review["author"]):
        assert url.startswith(str(sandbox.url))
        assert (await sandbox.get(url))["id"] in url
    for kind in ("movies", "series"):
        async with sandbox.session.get(f"/fastapi/api/v1/{kind}/{uuid4()}/") as response:
            assert response.status == 404


async def test_links_begin_with_the_configured_url() -> None:
    async with running_sandbox(url="http://sandbox:8090/") as sandbox:
        [movie, *_] = await sandbox.get("/fastapi/api/v1/movies/")
    assert movie["url"].startswith("http://sandbox:8090/fastapi/")


@pytest.mark.parametrize(
    ("behaviour", "status", "text"),
    [
        ({"kind": "fail", "status": 503}, 503, ""),
        ({"kind": "respond", "body": '[{"id": '}, 200, '[{"id": '),
        ({"kind": "respond", "body": '[1, null, "x"]'}, 200, '[1, null, "x"]'),
    ],
    ids=["down", "broken JSON", "nonsense"],
)
async def test_the_behaviour_of_an_api_is_limited_and_does_not_affect_the_others(
    sandbox: Sandbox, behaviour: dict[str, Any], status: int, text: str
) -> None:
    await sandbox.configure("/api/apis/auth/settings", behaviour=behaviour, times=2)
    await sandbox.get("/fastapi/api/v1/movies/")
    for _ in range(2):
        async with sandbox.session.get(USERS) as response:
            assert (response.status, await response.text()) == (status, text)
    await sandbox.get(USERS)


class Queue:
    """A queue on the exchange `events`, like that of ingestion."""

    def __init__(self, queue: aio_pika.abc.AbstractQueue) -> None:
        self._queue = queue

    async def next(self) -> aio_pika.abc.AbstractIncomingMessage:
        async with asyncio.timeout(10):
            while True:
                message = await self._queue.get(fail=False, no_ack=True)
                if message is not None:
                    return message
                await asyncio.sleep(0.02)


@pytest.fixture
async def events(amqp_url: str) -> AsyncIterator[Queue]:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("events", "topic", durable=True)
        queue = await channel.declare_queue(f"test-{uuid4().hex}", exclusive=True)
        await queue.bind(exchange, "#")
        yield Queue(queue)


@pytest.mark.parametrize(
    ("producer", "event", "field"),
    [
        ("auth", "user_signed_up", "user"),
        ("fastapi", "new_episode", "series"),
        ("activity_api", "reactions_summary", "stats"),
        ("cinema_scanner", "new_movies", "movies"),
    ],
)
async def test_e1_a_producer_publishes_its_event(
    amqp_url: str, events: Queue, producer: str, event: str, field: str
) -> None:
    async with running_sandbox(amqp_url) as sandbox:
        async with sandbox.session.post(f"/api/producers/{producer}") as response:
            assert response.status == 201, await response.text()
            [returned] = (await response.json())["events"]
        message = await events.next()
        assert json.loads(message.body) == returned
        assert (message.routing_key, message.type) == (f"{producer}.{event}", "Event")
        assert (message.content_type, message.app_id) == ("application/json", producer)
        assert message.delivery_mode == 2
        assert message.message_id
        urls = returned["details"][field]
        for url in urls if isinstance(urls, list) else [urls]:
            await sandbox.get(url["target"] if isinstance(url, dict) else url)


async def test_e3_given_fields_are_published_in_every_event(amqp_url: str, events: Queue) -> None:
    async with running_sandbox(amqp_url) as sandbox:
        request = {"count": 1200, "event_id": "same", "occurred_at": "2020-01-01T00:00:00Z"}
        async with sandbox.session.post("/api/producers/auth", json=request) as response:
            assert response.status == 201
    found = [await events.next() for _ in range(1200)]
    assert {json.loads(message.body)["event_id"] for message in found} == {"same"}
    assert len({message.message_id for message in found}) == 1200


async def test_a_button_publishes_and_the_page_shows_it(amqp_url: str, events: Queue) -> None:
    async with running_sandbox(amqp_url) as sandbox:
        async with sandbox.session.post("/producers/cinema_scanner") as response:
            assert (response.status, response.url.path) == (200, "/producers")
            assert "confirmed" in await response.text()
        assert (await events.next()).routing_key == "cinema_scanner.new_movies"


async def fault(sandbox: Sandbox) -> str:
    async with sandbox.session.post("/api/producers/auth") as response:
        assert response.status == 503
        detail: str = (await response.json(content_type=None))["detail"]
    async with sandbox.session.post("/producers/auth") as response:
        assert "not published" in await response.text()
    return detail


async def test_an_unavailable_broker_is_reported_without_the_password() -> None:
    async with running_sandbox("amqp://user:canary@127.0.0.1:1/") as sandbox:
        detail = await fault(sandbox)
    assert "Cannot connect to RabbitMQ: no connection to amqp://user:" in detail
    assert "canary" not in detail


async def test_a_missing_exchange_is_reported_with_the_command_to_run(amqp_url: str) -> None:
    async with running_sandbox(amqp_url) as sandbox:
        assert "no exchange 'events'" in await fault(sandbox)


async def test_a_missing_queue_is_reported(amqp_url: str) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_exchange("events", "topic", durable=True)
        async with running_sandbox(amqp_url) as sandbox:
            assert "no queue is bound" in await fault(sandbox)


async def test_wrong_fields_of_a_publish_request_are_named(sandbox: Sandbox) -> None:
    wrong = {"count": 0, "occurred_at": "yesterday", "x": 1}
    async with sandbox.session.post("/api/producers/auth", json=wrong) as response:
        assert response.status == 422
        errors = (await response.json(content_type=None))["errors"]
    assert {each["field"] for each in errors} == {"count", "occurred_at", "x"}
    async with sandbox.session.post("/api/producers/nobody") as response:
        assert response.status == 404
