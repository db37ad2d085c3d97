"""N5, U4: comments and the expiry of tokens on open streams; the limit of polls of a process."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import asyncpg
import pytest

from services.gateway.routes import polls
from tests.fakes.gateway import Caller, Response, base_url, calling
from tests.fakes.polling import NO_LIMITS, Person, Stream, check, open_polls, person, streaming
from tests.fakes.service import Service, running
from tests.fakes.system import SECRETS_KEY, fresh_database, migrate_all
from tests.fakes.waiting import until

RUN_SUBSCRIPTIONS = ("-m", "services", "run", "subscriptions", "--metrics-port", "0")
RUN_GATEWAY = ("-m", "tests.integration.impatient_gateway")
POLLS = 3


@dataclass(frozen=True)
class Running:
    """A gateway, and the database of the subscriptions behind it."""

    gateway: Service
    database_url: str


@pytest.fixture(scope="module")
def started(
    shared_amqp_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("streams")
    with fresh_database(database_url) as url:
        migrate_all(url)
        settings = NO_LIMITS | {
            "RINGBACK_DATABASE_URL": url,
            "RINGBACK_SECRETS_KEY": SECRETS_KEY,
            "RINGBACK_HTTP_PORT": "0",
            "RINGBACK_GATEWAY_POLLS": str(POLLS),
        }
        with (
            running(directory, shared_amqp_url, settings, RUN_SUBSCRIPTIONS) as subscriptions,
            running(directory, shared_amqp_url, settings, RUN_GATEWAY) as gateway,
        ):
            asyncio.run(subscriptions.ready())
            yield Running(gateway, url)


@pytest.fixture
async def call(started: Running) -> AsyncIterator[Caller]:
    await until(lambda: started.gateway.logged("user events is ready"))
    async with calling(await base_url(started.gateway)) as caller:
        yield caller
    await open_polls(started.gateway, 0)


@pytest.fixture
async def ann(call: Caller) -> Person:
    return await person(call)


@pytest.fixture
async def bob(call: Caller) -> Person:
    return await person(call)


def check_limit(response: Response) -> None:
    check(response, 429, -7)
    assert int(response.headers["Retry-After"]) > 0


async def comments(stream: Stream, count: int) -> list[bytes]:
    """Read lines until this number of comments has arrived, and return the lines."""
    lines: list[bytes] = []
    async with asyncio.timeout(60):
        while lines.count(b":\n") < count:
            lines.append(await stream.response.content.readline())
            assert lines[-1], "the stream has ended"
    return lines


async def test_n5_a_stream_without_events_sends_comments(
    started: Running, ann: Person, bob: Person
) -> None:
    assert polls.COMMENT_INTERVAL == 15, "docs/messenger.md promises it"
    async with streaming(started.gateway, bob.token) as stream:
        lines = await comments(stream, 3)
        # No event: the cursor to continue with, and comments.
        assert lines[0].startswith(b"id: ")
        assert set(lines[1:]) == {b"\n", b":\n"}
        assert await stream.response.content.readline() == b"\n"
        await ann.send(bob, "hello")
        event = await stream.next()
        assert event is not None
        assert event.data["event"]["text"] == "hello"


async def test_n5_a_stream_ends_when_its_token_has_expired(
    started: Running, call: Caller, ann: Person, bob: Person
) -> None:
    assert polls.READ_INTERVAL <= 60, "docs/messenger.md promises it"
    connection = await asyncpg.connect(started.database_url)
    try:
        async with (
            streaming(started.gateway, bob.token) as expired,
            streaming(started.gateway, ann.token) as other,
        ):
            await comments(expired, 1)
            hashed = hashlib.sha256(bob.token.encode()).digest()
            sql = "UPDATE subscriptions.tokens SET expires_at = now() WHERE hash = $1"
            assert await connection.execute(sql, hashed) == "UPDATE 1"
            async with asyncio.timeout(30):  # retention would delete the token after a minute
                assert await expired.next() is None
            check(await call("GET", "/events/stream", Authorization=f"Bearer {bob.token}"), 401, -1)
            await open_polls(started.gateway, 1)
            await comments(other, 20)  # for longer than the interval in which tokens are verified
    finally:
        await connection.close()


async def test_u4_a_process_has_a_limited_number_of_open_polls_and_streams(
    started: Running, call: Caller, ann: Person, bob: Person
) -> None:
    carl = await person(call)
    waiting = [asyncio.create_task(each.poll(timeout=60)) for each in (ann, bob)]
    async with streaming(started.gateway, bob.token):
        await open_polls(started.gateway, POLLS)
        check_limit(await carl.poll(timeout=0))
        check_limit(await call("GET", "/events/stream", Authorization=f"Bearer {carl.token}"))
        # Other routes have no such limit, and the open ones go on.
        await carl.send(ann, "hello")
        assert (await asyncio.wait_for(waiting[0], 60)).json["event"]["text"] == "hello"
        assert (await carl.poll(timeout=0)).json == {"events": []}
        await carl.send(bob, "hello")
        assert (await asyncio.wait_for(waiting[1], 60)).json["event"]["text"] == "hello"
