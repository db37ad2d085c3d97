"""Mailings as a process on a real broker: postings, messages, facts and requests."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.fakes.mailing import RUN_MAILINGS, empty_mailings, fact, posting
from tests.fakes.mailings_client import MailingsClient, mailings_client
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

PAGED = "http://auth/api/v1/users/?is_active=True&email_notifications=True&page_size=100"


@pytest.fixture
async def users() -> AsyncIterator[Sandbox]:
    async with running_sandbox(users=8000) as it:
        yield it


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
        "RINGBACK_MAILINGS_UNSUBSCRIBE_URL": "https://auth/off?user={user_id}&kind={kind}",
        "RINGBACK_LOG_LEVEL": "DEBUG",
    }
    with running(tmp_path, amqp_url, settings, RUN_MAILINGS) as it:
        yield it


async def test_e5_a_posting_on_the_queue_is_expanded_and_settled_by_facts(
    service: Service, amqp_url: str, users: Sandbox
) -> None:
    await service.ready()
    someone = next(
        each
        for each in await users.get("/auth/api/v1/users/", page_size=50)
        if each["email"] and each["is_active"] and each["email_notifications"] and each["phone"]
    )
    async with mailings_client(amqp_url) as around:
        id_ = await around.post(
            posting(
                receivers=f"http://auth/api/v1/users/{someone['id']}/",
                template_context={"confirmation_link": "https://auth/secret-canary"},
                expires_in="1 hour",
            )
        )
        invalid = await around.post(posting(delivery_type=["pigeon"], expires_in="soon"))
        await around.until(1)
        status = await around.ended(id_)
        (message,) = around.messages
        settled = fact(UUID(id_), 0) | {"message_id": message.headers["x-ringback-id"]}
        await around.post({"facts": [settled]}, exchange="outcomes", type="Facts")
        done = await around.ended(id_, "done")
        listed = await around.request("ListPostingMessages", id=id_)
        dead_letter = await until(lambda: _dead_letter(around))
        logged = service.output
        counted = await service.metric(
            "ringback_posting_messages_total", channel="email", outcome="sent"
        )

    body = message.body.decode()
    assert (message.type, message.content_type) == ("SendEmail", "application/json")
    assert message.delivery_mode == 2
    assert message.app_id == "ringback"
    assert "https://auth/secret-canary" in body
    assert "Kinoteka" in body
    assert f"https://auth/off?user={someone['id']}&kind=email_confirmation" in body
    assert (status["status"], status["receivers"]) == ("sending", 1)
    assert (done["messages"]["sent"], counted) == (1, 1)
    assert listed["items"][0]["user_id"] == someone["id"]
    assert dead_letter.message_id == invalid
    reason = dead_letter.headers["x-ringback-reason"]
    assert "delivery_type.0: " in reason
    assert "expires_in: " in reason
    for change in ("accepted", "expanding", "expanded", "done"):
        assert service.logged(f"posting {change}", posting_id=id_), change
    for secret in ("secret-canary", someone["email"], someone["phone"]):
        assert secret not in logged


async def _dead_letter(around: MailingsClient) -> object:
    queue = await around.channel.get_queue("postings.dead", ensure=False)
    return await queue.get(no_ack=True, fail=False)


async def test_expansion_pauses_while_the_queue_is_full(service: Service, amqp_url: str) -> None:
    await service.ready()
    async with mailings_client(amqp_url, consuming=False) as around:
        id_ = await around.post(posting(receivers=PAGED))
        deepest = 0

        async def paused() -> bool:
            nonlocal deepest
            deepest = max(deepest, await around.waiting("messages.email"))
            status = await around.request("GetPosting", id=id_)
            return "too many messages wait" in (status.get("reason") or "")

        await until(paused)
        gauge = await service.metric("ringback_posting_backpressure", queue="messages.email")
        for _ in range(10):
            await asyncio.sleep(0.1)  # it stays paused
            await paused()
        assert (await around.request("GetPosting", id=id_))["status"] == "expanding"
        await around.consume()
        status = await around.ended(id_)
        await around.until(status["messages"]["created"])
    assert gauge == 1
    assert 400 <= deepest <= 3000, (
        "the limit, and the messages published in the 0.2 s between two counts"
    )
    assert status["messages"]["created"] > 5000
    assert {ids.total() for ids in around.ids.values()} == {1}
