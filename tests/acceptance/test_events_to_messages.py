"""E1 to E7 together: an event becomes mails, and no user gets one twice."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

from services.ingestion.app import SCHEMA
from services.sandbox.users import Directory
from shared.postgres.migrations import migrate
from tests.acceptance.test_mailings_crashes import HASTY, is_enabled
from tests.fakes.mailing import empty_mailings
from tests.fakes.mailings_client import mailings_client
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.service import running
from tests.fakes.waiting import until

USERS = 4_000
INGESTION = ("-m", "services", "run", "ingestion", "--metrics-port", "0")
DELIVERY = ("-m", "services", "run", "delivery", "--metrics-port", "0")


def wants_new_movies(user: dict[str, Any]) -> bool:
    return is_enabled(user) and user["notifications"].get("new_movies") is not False


async def accepted(box: Sandbox) -> int:
    """Return how many mails the mail server has accepted."""
    count: int = (await box.get("/api/mails/settings"))["accepted"]
    return count


async def published_twice(box: Sandbox) -> str:
    """Let a producer publish an event twice, and return its id."""
    request: dict[str, Any] = {"event_id": uuid4().hex, "count": 2}
    async with box.session.post("/api/producers/cinema_scanner", json=request) as response:
        assert response.status == 201, await response.text()
    return str(request["event_id"])


async def test_e1_to_e7_a_duplicate_event_is_one_mail_for_each_user_although_mailings_is_killed(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    await empty_mailings(database_url)
    await migrate(database_url, SCHEMA)
    wanted = sum(wants_new_movies(user) for user in map(Directory(USERS).user, range(USERS)))
    async with (
        running_sandbox(amqp_url, users=USERS) as box,
        mailings_client(amqp_url, consuming=False) as around,
    ):
        data_host = f"{box.url.host}:{box.url.port}"
        settings = {
            "RINGBACK_DATABASE_URL": database_url,
            "RINGBACK_SOURCES": f"{data_host},auth=http://{data_host}/auth",
            "RINGBACK_SMTP_URL": str(box.smtp),
            # Keeps the expansion slow enough to be killed in the middle.
            "RINGBACK_MAILINGS_MAX_WAITING": "100",
        }
        with (
            running(tmp_path, amqp_url, settings, INGESTION) as ingestion,
            running(tmp_path, amqp_url, settings, DELIVERY),
        ):
            with running(tmp_path, amqp_url, settings, HASTY) as first:
                await asyncio.gather(ingestion.ready(), first.ready())
                event = await published_twice(box)

                async def some_accepted() -> bool:
                    return await accepted(box) >= wanted // 4

                await until(some_accepted)
                first.kill()
            assert not first.logged("posting expanded"), "killed too late to prove anything"
            with running(tmp_path, amqp_url, settings, HASTY):
                [posting] = (await around.request("ListPostings", from_event=event))["items"]
                status = await around.ended(posting["id"], "done")
            assert status["messages"]["sent"] == wanted
            assert await accepted(box) == wanted, "a user got it twice"
