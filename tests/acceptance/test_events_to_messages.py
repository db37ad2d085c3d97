"""Events and postings become e-mails: no user gets two, and urgent ones arrive first."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

from services.delivery.app import SCHEMA as DELIVERY_SCHEMA
from services.ingestion.app import SCHEMA
from services.sandbox.users import Directory
from shared.postgres.migrations import migrate
from tests.acceptance.test_mailings_crashes import SHORT_LEASES
from tests.fakes.delivering import delivery_database
from tests.fakes.mailing import RUN_MAILINGS, empty_mailings, is_enabled, posting
from tests.fakes.mailings_client import mailings_client
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.service import running
from tests.fakes.waiting import until

USERS = 4_000
INGESTION = ("-m", "services", "run", "ingestion", "--metrics-port", "0")
DELIVERY = ("-m", "services", "run", "delivery", "--metrics-port", "0")


def wants_new_movies(user: dict[str, Any]) -> bool:
    return is_enabled(user) and user["notifications"].get("new_movies") is not False


async def accepted(sandbox: Sandbox) -> int:
    """Return how many mails the mail server has accepted."""
    count: int = (await sandbox.get("/api/mails/settings"))["accepted"]
    return count


async def published_twice(sandbox: Sandbox) -> str:
    """Let a producer publish an event twice, and return its id."""
    request: dict[str, Any] = {"event_id": uuid4().hex, "count": 2}
    async with sandbox.session.post("/api/producers/cinema_scanner", json=request) as response:
        assert response.status == 201, await response.text()
    return str(request["event_id"])


async def test_e1_to_e7_a_duplicate_event_is_one_mail_for_each_user_although_mailings_is_killed(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    await empty_mailings(database_url)
    await migrate(database_url, SCHEMA)
    await migrate(database_url, DELIVERY_SCHEMA)
    expected = sum(wants_new_movies(user) for user in map(Directory(USERS).user, range(USERS)))
    async with (
        running_sandbox(amqp_url, users=USERS) as sandbox,
        mailings_client(amqp_url, consuming=False) as client,
    ):
        data_host = f"{sandbox.url.host}:{sandbox.url.port}"
        settings = {
            "RINGBACK_DATABASE_URL": database_url,
            "RINGBACK_SOURCES": f"{data_host},auth=http://{data_host}/auth",
            "RINGBACK_SMTP_URL": str(sandbox.smtp),
            # Keeps the expansion slow enough to be killed in the middle.
            "RINGBACK_MAILINGS_MAX_WAITING": "100",
        }
        with (
            running(tmp_path, amqp_url, settings, INGESTION) as ingestion,
            running(tmp_path, amqp_url, settings, DELIVERY),
        ):
            with running(tmp_path, amqp_url, settings, SHORT_LEASES) as first:
                await asyncio.gather(ingestion.ready(), first.ready())
                event = await published_twice(sandbox)

                async def some_accepted() -> bool:
                    return await accepted(sandbox) >= expected // 4

                await until(some_accepted)
                first.kill()
            assert not first.logged("posting expanded"), "killed too late for this test"
            with running(tmp_path, amqp_url, settings, SHORT_LEASES):
                [posting] = (await client.request("ListPostings", from_event=event))["items"]
                status = await client.wait_for_status(posting["id"], "done")
            assert status["messages"]["sent"] == expected
            assert await accepted(sandbox) == expected, "a user got the e-mail twice"


async def test_n9_findings_c5_and_d4_an_urgent_posting_arrives_while_a_bulk_one_waits(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    await empty_mailings(database_url)
    await delivery_database(database_url)
    users = [Directory(USERS).user(number) for number in range(USERS)]
    bulk = sum(map(wants_new_movies, users))
    others = [user for user in users if is_enabled(user) and not wants_new_movies(user)]
    async with (
        running_sandbox(amqp_url, users=USERS) as sandbox,
        mailings_client(amqp_url, consuming=False) as client,
    ):
        # Slow: the bulk posting takes minutes.
        await sandbox.configure("/api/mails/settings", behaviour={"kind": "delay", "seconds": 0.1})
        data_host = f"{sandbox.url.host}:{sandbox.url.port}"
        settings = {
            "RINGBACK_DATABASE_URL": database_url,
            "RINGBACK_SOURCES": f"{data_host},auth=http://{data_host}/auth",
            "RINGBACK_SMTP_URL": str(sandbox.smtp),
            "RINGBACK_DELIVERY_SMTP_CONNECTIONS": "2",
        }
        with (
            running(tmp_path, amqp_url, settings, RUN_MAILINGS) as mailings,
            running(tmp_path, amqp_url, settings, DELIVERY) as delivery,
        ):
            await asyncio.gather(mailings.ready(), delivery.ready())
            await client.post(
                posting(
                    receivers="http://auth/api/v1/users/?page_size=500",
                    template="email/new_movies.md",
                    template_context={
                        "movies": f"http://{data_host}/fastapi/api/v1/movies/?new=True"
                    },
                )
            )
            await until(lambda: mailings.logged("posting expanded"))
            await until(lambda: accepted(sandbox))
            for user in others[:3]:
                before = await accepted(sandbox)
                await client.post(
                    posting(
                        receivers=f"http://auth/api/v1/users/?id={user['id']}",
                        template="email/email_confirmation.md",
                        template_context={"confirmation_link": "https://shop.example.com/4"},
                    )
                )
                await sandbox.received("/api/mails", to=user["email"])
                assert await accepted(sandbox) - before < bulk / 10
            assert await accepted(sandbox) < bulk / 2, "the bulk posting was sent too early"
