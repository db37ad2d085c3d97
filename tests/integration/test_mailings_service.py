"""Mailings as a process on a real broker: postings, messages, facts and requests."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from tests.fakes.mailing import RUN_MAILINGS, empty_mailings, fact, posting
from tests.fakes.mailings_client import MailingsClient, mailings_client
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.service import Service, running
from tests.fakes.system import SECRETS_KEY
from tests.fakes.waiting import until

PAGED = "http://auth/api/v1/users/?is_active=True&email_notifications=True&page_size=100"


@pytest.fixture
async def users() -> AsyncIterator[Sandbox]:
    async with running_sandbox(users=8000) as server:
        yield server


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


@pytest.fixture
def service(amqp_url: str, url: str, users: Sandbox, tmp_path: Path) -> Iterator[Service]:
    settings = {
        "RINGBACK_DATABASE_URL": url,
        "RINGBACK_SOURCES": f"auth={users.url}auth, fastapi={users.url}fastapi",
        "RINGBACK_MAILINGS_MAX_WAITING": "400",
        "RINGBACK_MAILINGS_PRODUCT": "Kinoteka",
        "RINGBACK_MAILINGS_UNSUBSCRIBE_URL": "https://ringback.example.com/v1/unsubscribe",
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
        "RINGBACK_LOG_LEVEL": "DEBUG",
    }
    with running(tmp_path, amqp_url, settings, RUN_MAILINGS) as started:
        yield started


async def test_e5_a_posting_on_the_queue_is_expanded_and_settled_by_facts(
    service: Service, amqp_url: str, users: Sandbox
) -> None:
    await service.ready()
    user = next(
        each
        for each in await users.get("/auth/api/v1/users/", page_size=50)
        if each["email"] and each["is_active"] and each["email_notifications"] and each["phone"]
    )
    async with mailings_client(amqp_url) as client:
        posting_id = await client.post(
            posting(
                receivers=f"http://auth/api/v1/users/{user['id']}/",
                template_context={"username": "https://auth/secret-canary"},
                expires_in="1 hour",
            )
        )
        invalid = await client.post(posting(delivery_type=["pigeon"], expires_in="soon"))
        await client.wait_for_users(1)
        status = await client.wait_for_status(posting_id)
        (message,) = client.messages
        settled = fact(UUID(posting_id), 0) | {"message_id": message.headers["x-ringback-id"]}
        await client.post({"facts": [settled]}, exchange="outcomes", type="Facts")
        done = await client.wait_for_status(posting_id, "done")
        listed = await client.request("ListPostingMessages", id=posting_id)
        dead_letter = await until(lambda: _dead_letter(client))
        # A posting is done in the database before it is logged and counted.
        counted = await service.metric_reaches(
            1, "ringback_posting_messages_total", channel="email", outcome="sent"
        )
        for change in ("accepted", "expanding", "expanded", "done"):
            await until(partial(service.logged, f"posting {change}", posting_id=posting_id))
        logged = service.output

    body = message.body.decode()
    assert (message.type, message.content_type) == ("SendEmail", "application/json")
    assert message.delivery_mode == 2
    assert message.app_id == "ringback"
    assert "https://auth/secret-canary" in body
    assert "Kinoteka" in body
    assert "https://ringback.example.com/v1/unsubscribe?token=" in body
    assert (status["status"], status["receivers"]) == ("sending", 1)
    assert (done["messages"]["sent"], counted) == (1, 1)
    assert listed["items"][0]["user_id"] == user["id"]
    assert dead_letter.message_id == invalid
    reason = dead_letter.headers["x-ringback-reason"]
    assert "delivery_type.0: " in reason
    assert "expires_in: " in reason
    for secret in ("secret-canary", user["email"], user["phone"]):
        assert secret not in logged


async def _dead_letter(client: MailingsClient) -> object:
    queue = await client.channel.get_queue("postings.dead", ensure=False)
    return await queue.get(no_ack=True, fail=False)


async def test_expansion_pauses_while_the_queue_is_full(service: Service, amqp_url: str) -> None:
    await service.ready()
    async with mailings_client(amqp_url, consuming=False) as client:
        posting_id = await client.post(posting(receivers=PAGED))
        max_length = 0

        async def paused() -> bool:
            nonlocal max_length
            max_length = max(max_length, await client.length("messages.email"))
            status = await client.request("GetPosting", id=posting_id)
            return "too many messages wait" in (status.get("reason") or "")

        await until(paused)
        gauge = await service.metric("ringback_posting_backpressure", queue="messages.email")
        for _ in range(10):
            await asyncio.sleep(0.1)  # it stays paused
            await paused()
        assert (await client.request("GetPosting", id=posting_id))["status"] == "expanding"
        await client.consume()
        status = await client.wait_for_status(posting_id)
        await client.wait_for_users(status["messages"]["created"])
    assert gauge == 1
    assert 400 <= max_length <= 3000, (
        "the limit, and the messages published in the 0.2 s between two counts"
    )
    assert status["messages"]["created"] > 5000
    assert {ids.total() for ids in client.ids.values()} == {1}
