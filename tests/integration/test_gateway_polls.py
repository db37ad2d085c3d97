"""U4, U6: long polls through the real gateway and subscriptions."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

import aio_pika
import pytest

from shared.contracts.polls import UserCursor, encode_user_cursor
from tests.fakes.gateway import Caller
from tests.fakes.polling import NO_LIMITS, Person, check, open_polls, person, sign_in
from tests.fakes.system import StartSystem, System
from tests.fakes.waiting import until

POLLS_PER_USER = 4
READS = "ringback_requests_answered_total"


@pytest.fixture(scope="module")
def services(start_system: StartSystem) -> Iterator[System]:
    settings = NO_LIMITS | {"RINGBACK_GATEWAY_POLLS_PER_USER": str(POLLS_PER_USER)}
    with start_system("subscriptions", **settings) as started:
        yield started


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    async with services.calling() as caller:
        await until(lambda: services["gateway"].logged("user events is ready"))
        yield caller


@pytest.fixture
async def ann(call: Caller) -> Person:
    return await person(call)


@pytest.fixture
async def bob(call: Caller) -> Person:
    return await person(call)


async def reads(services: System) -> float:
    return await services["subscriptions"].metric(READS, operation="ReadEvents")


async def reads_reach(services: System, count: float) -> None:
    """Wait for this number of reads: a poll is open before its first one."""
    await services["subscriptions"].metric_reaches(count, READS, operation="ReadEvents")


async def test_u4_an_open_poll_returns_an_event_as_soon_as_it_happens(
    services: System, ann: Person, bob: Person
) -> None:
    poll = asyncio.create_task(bob.poll(timeout=60))
    await open_polls(services["gateway"], 1)
    message_id = await ann.send(bob, "hi")
    response = await asyncio.wait_for(poll, 20)
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("application/json")
    assert response.headers["Cache-Control"] == "no-store"
    body = response.json
    assert isinstance(body["event"].pop("created_at"), int)
    assert body == {
        "type": "new_message",
        "event": {"message_id": message_id, "to_id": bob.id, "from_id": ann.id, "text": "hi"},
        "next_cursor": encode_user_cursor(UserCursor(bob.id, 1)),
    }


async def test_u4_nothing_is_read_while_a_poll_is_open_and_others_get_events(
    services: System, ann: Person, bob: Person
) -> None:
    before = await reads(services) + 1
    poll = asyncio.create_task(bob.poll(timeout=60, limit=10))
    await reads_reach(services, before)
    for _ in range(20):
        await ann.send(ann)
    assert await reads(services) == before
    await ann.send(bob)
    assert len((await poll).json["events"]) == 1
    assert await reads(services) == before + 1


async def test_u6_events_between_two_polls_are_returned_one_by_one_or_as_a_list(
    ann: Person, bob: Person
) -> None:
    for number in range(5):
        await ann.send(bob, str(number))
    first = await bob.poll()
    assert first.json["event"]["text"] == "0"
    assert await bob.texts(limit=2) == ["1", "2"]
    assert await bob.texts() == ["3", "4"]
    assert (await bob.poll(timeout=0)).json == {"events": []}
    assert await bob.texts(cursor=first.json["next_cursor"]) == ["1", "2", "3", "4"]
    assert await bob.texts() == []


async def test_u4_each_event_goes_to_one_of_two_polls_and_with_a_cursor_to_both(
    services: System, ann: Person, bob: Person
) -> None:
    cursor = encode_user_cursor(UserCursor(bob.id, 0))
    polls = [asyncio.create_task(bob.poll(timeout=60)) for _ in range(2)]
    both = [asyncio.create_task(bob.poll(timeout=60, cursor=cursor)) for _ in range(2)]
    await open_polls(services["gateway"], 4)
    await ann.send(bob, "first")
    for poll in both:
        assert (await asyncio.wait_for(poll, 20)).json["event"]["text"] == "first"
    done, [waits] = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    assert [task.result().json["event"]["text"] for task in done] == ["first"]
    await ann.send(bob, "second")
    assert (await asyncio.wait_for(waits, 20)).json["event"]["text"] == "second"


async def test_u4_bodies_are_forms_too_and_the_token_can_be_a_bearer(
    call: Caller, ann: Person, bob: Person
) -> None:
    for text in ("one", "two"):
        await ann.send(bob, text)
    raw = urlencode({"timeout": "0.5", "limit": "1"})
    form = "application/x-www-form-urlencoded"
    bearer = f"Bearer {bob.token}"
    response = await call(
        "POST", "/events/polling", raw=raw, Content_Type=form, Authorization=bearer
    )
    assert [event["event"]["text"] for event in response.json["events"]] == ["one"]


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout": -1},
        {"timeout": 60.5},
        {"timeout": "x"},
        {"limit": 0},
        {"limit": 1001},
        {"cursor": 1},
        {"other": 1},
    ],
)
async def test_u5_invalid_parameters_of_a_poll_are_rejected(
    ann: Person, fields: dict[str, Any]
) -> None:
    check(await ann.poll(**fields), 422, -3)


async def test_u6_a_cursor_that_is_garbage_of_another_user_or_in_the_future_is_rejected(
    ann: Person, bob: Person
) -> None:
    await ann.send(bob)
    wrong = [encode_user_cursor(UserCursor(*at)) for at in ((ann.id, 0), (bob.id, 2))]
    for cursor in (*wrong, "x", "MS4x\n", "é", "AAAA", "x" * 101):
        check(await bob.poll(timeout=0, cursor=cursor), 422, -3)
    assert await bob.texts() == ["hello"]


async def test_u5_a_poll_needs_a_valid_token_and_ends_when_it_is_revoked(
    services: System, call: Caller, ann: Person
) -> None:
    check(await call("POST", "/events/polling", {"timeout": 0}), 401, -1)
    check(await call("POST", "/events/polling", {"token": "x"}), 401, -1)
    poll = asyncio.create_task(ann.poll(timeout=60))
    await open_polls(services["gateway"], 1)
    assert (await call("POST", "/users/logout", {"token": ann.token})).status == 200
    check(await asyncio.wait_for(poll, 20), 401, -1)


async def test_u4_a_user_has_a_limited_number_of_open_polls(
    services: System, call: Caller, ann: Person, bob: Person
) -> None:
    tokens = [ann.token, await sign_in(call, ann.name)]
    before = await reads(services)
    polls = [
        asyncio.create_task(
            call("POST", "/events/polling", {"token": tokens[number % 2], "timeout": 60})
        )
        for number in range(POLLS_PER_USER)
    ]
    await open_polls(services["gateway"], POLLS_PER_USER)
    await reads_reach(services, before + POLLS_PER_USER)
    refused = await ann.poll()
    check(refused, 429, -7)
    assert int(refused.headers["Retry-After"]) > 0
    assert (await bob.poll(timeout=0)).status == 200
    for poll in polls:
        poll.cancel()
    # The clients have disconnected.
    await open_polls(services["gateway"], 0)
    assert (await ann.poll(timeout=0)).json == {"events": []}


async def test_u6_an_event_published_by_amqp_reaches_an_open_poll(
    services: System, shared_amqp_url: str, ann: Person
) -> None:
    poll = asyncio.create_task(ann.poll(timeout=60))
    await open_polls(services["gateway"], 1)
    async with await aio_pika.connect(shared_amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("user_events")
        body = {"user_id": str(ann.id), "type": "movie.released", "event": {"title": 'Ж"\n'}}
        await exchange.publish(
            aio_pika.Message(
                json.dumps(body).encode(),
                content_type="application/json",
                type="UserEvent",
                message_id="m-1",
            ),
            str(ann.id),
        )
    answer = (await asyncio.wait_for(poll, 20)).json
    assert (answer["type"], answer["event"]) == ("movie.released", {"title": 'Ж"\n'})
