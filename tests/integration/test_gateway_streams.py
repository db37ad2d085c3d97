"""U6, N5, row 34: streams over the cursors of polls; gateways that stop or lose wakes."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aio_pika
import aiohttp
import pytest

from deploy.local.broker import Broker
from shared.contracts.polls import UserCursor, encode_user_cursor
from tests.fakes.gateway import Caller, base_url, calling, gateway
from tests.fakes.polling import NO_LIMITS, Person, open_polls, person, streaming
from tests.fakes.service import Service
from tests.fakes.system import StartSystem, System, fresh_database, system
from tests.fakes.waiting import until


@pytest.fixture(scope="module")
def services(start_system: StartSystem) -> Iterator[System]:
    with start_system("subscriptions", **NO_LIMITS) as started:
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


def cursor(user: Person, sequence: int) -> str:
    return encode_user_cursor(UserCursor(user.id, sequence))


async def test_n5_a_stream_sends_earlier_and_later_events_with_their_cursors(
    services: System, ann: Person, bob: Person
) -> None:
    await ann.send(bob, "before")
    async with streaming(services["gateway"], bob.token) as stream:
        event = await stream.next()
        assert event is not None
        assert event.id == cursor(bob, 1)
        assert event.data.keys() == {"type", "event"}
        assert (event.data["type"], event.data["event"]["text"]) == ("new_message", "before")
        await ann.send(bob, "later\n")
        await ann.send(bob, "last")
        assert await stream.texts(2) == ["later\n", "last"]
        assert stream.ids[-1] == cursor(bob, 3)
    # Polls use the same cursors.
    assert await bob.texts(cursor=event.id) == ["later\n", "last"]
    await open_polls(services["gateway"], 0)


async def test_n5_a_stream_continues_after_last_event_id_and_each_gets_every_event(
    services: System, ann: Person, bob: Person
) -> None:
    for number in range(150):
        await ann.send(bob, str(number))
    async with (
        streaming(services["gateway"], bob.token, cursor(bob, 20)) as first,
        streaming(services["gateway"], bob.token, cursor(bob, 149)) as second,
    ):
        assert await first.texts(130) == [str(number) for number in range(20, 150)]
        assert await second.texts(1) == ["149"]
        await ann.send(bob, "new")
        assert await first.texts(1) == await second.texts(1) == ["new"]


async def test_n5_a_stream_without_events_names_the_cursor_to_continue_with(
    services: System, ann: Person, bob: Person
) -> None:
    async with streaming(services["gateway"], bob.token) as stream:
        await open_polls(services["gateway"], 1)
        for _ in range(2):
            await ann.send(bob)
            await stream.texts(1)
        # The first names a cursor. Each of the others belongs to an event.
        assert stream.ids == [cursor(bob, sequence) for sequence in range(3)]


async def test_n5_a_stream_is_utf_8_and_no_text_splits_a_line(
    services: System, ann: Person, bob: Person
) -> None:
    odd = "a\x85b\u2028c\u2029d\x0b\x0c\x1ce\ufeff\r\nf\U0001f600"
    await ann.send(bob, odd)
    async with streaming(services["gateway"], bob.token) as stream:
        assert stream.response.charset == "utf-8"
        await stream.response.content.readline()
        line = (await stream.response.content.readline()).decode()
    assert len(line.splitlines()) == 1
    assert json.loads(line.removeprefix("data: "))["event"]["text"] == odd


async def test_n5_head_of_a_stream_is_405_and_moves_no_position(
    services: System, ann: Person, bob: Person
) -> None:
    await ann.send(bob, "unseen")
    url = f"{await base_url(services['gateway'])}/events/stream?token={bob.token}"
    async with aiohttp.ClientSession() as session, session.head(url) as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET")
    assert await bob.texts() == ["unseen"]


async def test_n5_a_stream_needs_one_valid_token_and_a_valid_cursor(
    call: Caller, ann: Person, bob: Person
) -> None:
    for path, headers, status, code in (
        ("/events/stream", {}, 401, -1),
        ("/events/stream?token=x", {}, 401, -1),
        (f"/events/stream?token={ann.token}", {"Authorization": f"Bearer {bob.token}"}, 401, -1),
        (f"/events/stream?token={ann.token}", {"Last_Event_ID": cursor(bob, 0)}, 422, -3),
        (f"/events/stream?token={ann.token}", {"Last_Event_ID": "x"}, 422, -3),
        (f"/events/stream?token={ann.token}", {"Last_Event_ID": cursor(ann, 1)}, 422, -3),
    ):
        response = await call("GET", path, **headers)
        assert (response.status, response.json["code"]) == (status, code), response.text


async def test_n5_a_stream_ends_when_its_token_is_revoked(
    services: System, call: Caller, ann: Person
) -> None:
    async with streaming(services["gateway"], ann.token) as stream:
        await open_polls(services["gateway"], 1)
        assert (await call("POST", "/users/logout", {"token": ann.token})).status == 200
        assert await stream.next(20) is None


async def test_row_34_a_client_that_reads_nothing_costs_bounded_memory_and_loses_nothing(
    services: System, ann: Person, bob: Person
) -> None:
    gateway_service = services["gateway"]
    with socket.create_connection(
        ("127.0.0.1", int((await base_url(gateway_service)).rpartition(":")[2]))
    ) as stopped:
        stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = f"GET /events/stream?token={bob.token} HTTP/1.1\r\nHost: x\r\n\r\n"
        stopped.sendall(request.encode())
        await open_polls(gateway_service, 1)
        before = memory(gateway_service)
        text = "\U0001f514" * 9000  # 108 kB as JSON
        for _ in range(300):
            await ann.send(bob, text)
        assert memory(gateway_service) - before < 25_000_000  # 32 MB were sent
        # Others are not delayed.
        poll = asyncio.create_task(ann.poll(timeout=60))
        await open_polls(gateway_service, 2)
        await bob.send(ann, "hi")
        assert (await asyncio.wait_for(poll, 20)).json["event"]["text"] == "hi"
    await open_polls(gateway_service, 0)
    after = cursor(bob, 0)
    count = 0
    while events := (await bob.poll(timeout=0, cursor=after, limit=1000)).json["events"]:
        count += len(events)
        after = cursor(bob, count)
    assert count == 300


def memory(service: Service) -> int:
    """Return the resident memory of a process in bytes."""
    pages = Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def test_u4_a_stop_ends_polls_and_streams_and_clients_continue_at_another_gateway(
    services: System, shared_amqp_url: str, ann: Person, bob: Person, tmp_path: Path
) -> None:
    with gateway(tmp_path, shared_amqp_url) as stopped:
        await until(lambda: stopped.logged("user events is ready"))
        async with (
            calling(await base_url(stopped)) as call,
            streaming(stopped, bob.token) as stream,
        ):
            poll = asyncio.create_task(
                call("POST", "/events/polling", {"token": ann.token, "timeout": 60})
            )
            await open_polls(stopped, 2)
            stopped.signal(signal.SIGTERM)
            response = await asyncio.wait_for(poll, 20)
            assert (response.status, response.json) == (200, {"events": []})
            assert await stream.next(20) is None
        assert await stopped.exit_code() == 0
        await ann.send(bob, "meanwhile")
        async with streaming(services["gateway"], bob.token, stream.ids[-1]) as again:
            assert await again.texts(1) == ["meanwhile"]


async def test_u6_a_poll_with_a_cursor_loses_nothing_when_its_gateway_is_killed(
    shared_amqp_url: str, ann: Person, bob: Person, tmp_path: Path
) -> None:
    after = cursor(bob, 0)
    with gateway(tmp_path, shared_amqp_url) as killed:
        await until(lambda: killed.logged("user events is ready"))
        async with calling(await base_url(killed)) as call:
            body = {"token": bob.token, "timeout": 60, "cursor": after}
            poll = asyncio.create_task(call("POST", "/events/polling", body))
            await open_polls(killed, 1)
            killed.kill()
            with pytest.raises(aiohttp.ClientError):
                await poll
    await ann.send(bob, "meanwhile")
    assert await bob.texts(cursor=after) == ["meanwhile"]


async def test_u4_a_message_reaches_polls_at_every_gateway_and_worker(
    services: System, shared_amqp_url: str, ann: Person, bob: Person, tmp_path: Path
) -> None:
    after = cursor(bob, 0)
    with gateway(tmp_path, shared_amqp_url, {}, "--workers", "2") as workers:
        await until(lambda: len(workers.logged("user events is ready")) == 2)
        async with AsyncExitStack() as stack:
            # A connection each, which the kernel spreads over the workers.
            calls = [
                await stack.enter_async_context(calling(await base_url(workers))) for _ in range(12)
            ]
            body = {"token": bob.token, "timeout": 60, "cursor": after}
            polls = [asyncio.create_task(each("POST", "/events/polling", body)) for each in calls]
            polls += [asyncio.create_task(bob.poll(timeout=60, cursor=after)) for _ in range(4)]
            await open_polls(workers, 12)
            await open_polls(services["gateway"], 4)
            await ann.send(bob, "to all")
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*polls)
    assert {answer.json["event"]["text"] for answer in answers} == {"to all"}


@pytest.fixture
def own_services(own_broker: Broker, database_url: str, tmp_path: Path) -> Iterator[System]:
    with (
        fresh_database(database_url) as url,
        system(tmp_path, own_broker.url, url, "subscriptions", **NO_LIMITS) as started,
    ):
        asyncio.run(started.ready())
        yield started


async def test_u6_a_lost_wake_is_made_up_for_when_the_connection_is_back(
    own_services: System, own_broker: Broker
) -> None:
    gateway_service = own_services["gateway"]
    async with own_services.calling() as call:
        await until(lambda: gateway_service.logged("user events is ready"))
        ann, bob = await person(call), await person(call)
        poll = asyncio.create_task(bob.poll(timeout=60))
        await own_services["subscriptions"].metric_reaches(
            1, "ringback_requests_answered_total", operation="ReadEvents"
        )
        # Without the exchange, the queue of the gateway has no binding, and the wake is lost.
        await delete_wakes(own_broker.url)
        await ann.send(bob, "hi")
        _, waiting = await asyncio.wait([poll], timeout=1)
        assert waiting, "the wake was not lost"
        own_broker.ctl("close_all_connections", "--vhost", own_broker.vhost, "test")
        response = await asyncio.wait_for(poll, 30)
        assert response.json["event"]["text"] == "hi"


async def delete_wakes(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.exchange_delete("user_events.wake")
