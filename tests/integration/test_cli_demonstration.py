"""The demonstration, without the services that it needs."""

from collections.abc import AsyncIterator

import aio_pika
import click
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.cli import demo, demo_postings
from services.cli.demonstration import Places, demonstrate
from shared.settings import Settings
from tests.fakes.sandbox import Sandbox, running_sandbox


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with running_sandbox(users=100) as server:
        yield server


async def count(amqp_url: str, queue: str) -> int | None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count


async def test_finding_d1_a_step_that_takes_too_long_is_named(
    amqp_url: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding D1: the demonstration ended with a traceback and "Connection lost"."""
    monkeypatch.setattr(demo, "DELIVERY_TIMEOUT", 1)

    async def create(_: web.Request) -> web.Response:
        return web.json_response({"id": "c", "run_at": "2026-11-20T15:00:00Z"}, status=201)

    app = web.Application()
    app.router.add_post("/v1/callbacks", create)
    url = str(sandbox.url).rstrip("/")
    async with TestServer(app, host="127.0.0.1") as gateway:
        places = Places(url, str(gateway.make_url("")).rstrip("/"), url, console=url)
        with pytest.raises(click.ClickException) as caught:
            await demonstrate(Settings(amqp_url=amqp_url), places, movies_event="e", real=[])

    expected = r"Cannot finish the demonstration: the sandbox received callback \d 0 times"
    assert caught.match(expected)


async def test_finding_c16_no_event_is_published_if_e_mails_do_not_reach_the_sandbox(
    amqp_url: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding C16: delivery may have settings that the demonstration does not see."""
    monkeypatch.setattr(demo_postings, "CHECK_TIMEOUT", 1)
    url = str(sandbox.url).rstrip("/")

    with pytest.raises(click.ClickException, match="e-mails do not reach the sandbox"):
        await demo_postings.show_postings(
            Settings(amqp_url=amqp_url),
            url,
            gateway="http://127.0.0.1:1",
            page=url,
            movies_event="e",
        )

    assert await count(amqp_url, "events") == 0
    assert await count(amqp_url, "postings") == 0
    assert await count(amqp_url, "messages.email") == 0
    assert await count(amqp_url, "messages.email.urgent") == 1  # to a domain that does not exist
