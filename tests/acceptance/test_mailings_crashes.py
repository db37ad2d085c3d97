"""E7: a posting to 20,000 users survives kill -9 and a database restart, without a gap."""

import asyncio
from pathlib import Path

import pytest

from deploy.local.database import Database
from services.mailings.expansion.worker import MAX_SMALL
from tests.fakes.mailing import empty_mailings, is_enabled, posting
from tests.fakes.mailings_client import SHORT_QUEUES, MailingsClient, mailings_client
from tests.fakes.sandbox import running_sandbox
from tests.fakes.service import running

SHORT_LEASES = ("-m", "tests.acceptance.short_lease_mailings")
USERS = 20_000
RESTART_USERS = 6_000
PAGE = 500
SINGLE_USERS = 4_000


def to_all_users() -> dict[str, object]:
    return posting(receivers=f"http://auth/api/v1/users/?page_size={PAGE}")


async def wait_until_all_received(client: MailingsClient, users: int, *, repeats: int) -> None:
    """Wait until exactly the users who enabled the e-mail received it, each with one id."""
    directory = client.directory(users)
    enabled = {user["id"] for user in directory if is_enabled(user)}
    await client.wait_for_users(len(enabled))
    assert client.ids.keys() == enabled
    assert {len(ids) for ids in client.ids.values()} == {1}, "a user has two ids"
    assert sum(ids.total() for ids in client.ids.values()) - len(enabled) <= repeats


async def test_e7_two_kills_skip_no_recipient_and_change_no_id(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await empty_mailings(own_database.url)
    async with running_sandbox(users=USERS) as sandbox, mailings_client(amqp_url) as client:
        settings = {
            "RINGBACK_DATABASE_URL": own_database.url,
            "RINGBACK_SOURCES": f"auth={sandbox.url}auth",
            **SHORT_QUEUES,
        }
        posting_id = await client.post(to_all_users())
        for reached in (2_000, 8_000):
            await client.release(hold_from=reached)
            with running(tmp_path, amqp_url, settings, SHORT_LEASES) as service:
                await client.wait_for_users(reached)
                service.kill()
        await client.release()
        with running(tmp_path, amqp_url, settings, SHORT_LEASES) as service:
            await wait_until_all_received(client, USERS, repeats=2 * PAGE)
            status = await client.wait_for_status(posting_id)
            assert not service.logged("bug")
    assert (status["status"], status["pages"]) == ("sending", USERS // PAGE + 1)
    assert status["messages"]["created"] == len(client.ids)
    assert sum(status["messages"].values()) == status["receivers"] == USERS


@pytest.mark.slow
async def test_row_19_a_database_restart_skips_no_recipient(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await empty_mailings(own_database.url)
    async with running_sandbox(users=RESTART_USERS) as sandbox, mailings_client(amqp_url) as client:
        settings = {
            "RINGBACK_DATABASE_URL": own_database.url,
            "RINGBACK_SOURCES": f"auth={sandbox.url}auth",
            **SHORT_QUEUES,
        }
        with running(tmp_path, amqp_url, settings, SHORT_LEASES) as service:
            await service.ready()
            client.hold_from = 1_000
            posting_id = await client.post(to_all_users())
            await client.wait_for_users(1_000)
            await asyncio.to_thread(own_database.stop, immediate=True)
            await client.release()
            await asyncio.to_thread(own_database.start)
            await wait_until_all_received(client, RESTART_USERS, repeats=PAGE)
            status = await client.wait_for_status(posting_id)
            assert not service.logged("bug")
    assert status["receivers"] == RESTART_USERS


@pytest.mark.slow
async def test_finding_c19_e7_two_kills_lose_no_posting_to_one_recipient(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await empty_mailings(own_database.url)
    async with running_sandbox(users=SINGLE_USERS) as sandbox, mailings_client(amqp_url) as client:
        settings = {
            "RINGBACK_DATABASE_URL": own_database.url,
            "RINGBACK_SOURCES": f"auth={sandbox.url}auth",
            **SHORT_QUEUES,
        }
        directory = client.directory(SINGLE_USERS)
        code = {
            "template": "email/email_confirmation.md",
            "template_context": {"confirmation_link": "http://auth/abcDe4"},
        }
        one = "http://auth/api/v1/users/?id="
        ids = await asyncio.gather(
            *(client.post(posting(receivers=one + user["id"], **code)) for user in directory)
        )
        reachable = {user["id"] for user in directory if user["email"]}
        for reached in (100, 1_000):
            await client.release(hold_from=reached)
            with running(tmp_path, amqp_url, settings, SHORT_LEASES) as service:
                await client.wait_for_users(reached)
                service.kill()
        await client.release()
        with running(tmp_path, amqp_url, settings, SHORT_LEASES) as service:
            await client.wait_for_users(len(reachable))
            statuses = await asyncio.gather(*map(client.wait_for_status, ids))
            assert not service.logged("bug")
    assert client.ids.keys() == reachable
    assert {len(each) for each in client.ids.values()} == {1}, "a user has two ids"
    repeats = sum(each.total() for each in client.ids.values()) - len(reachable)
    assert repeats <= 2 * 2 * MAX_SMALL, "the postings in progress at each kill"
    assert {each["status"] for each in statuses} <= {"sending", "done"}
    assert {(each["pages"], each["receivers"]) for each in statuses} == {(1, 1)}
