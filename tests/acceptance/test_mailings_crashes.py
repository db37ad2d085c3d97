"""E7: a posting to 20,000 survives kill -9 and a restart of the database: nobody is left out."""

import asyncio
from pathlib import Path

from deploy.local.database import Database
from tests.fakes.mailing import emptied, posting
from tests.fakes.mailing_outside import Around, outside
from tests.fakes.sandbox import sandbox
from tests.fakes.service import running

HASTY = ("-m", "tests.acceptance.hasty_mailings")
USERS = 20_000
FEWER = 6_000
PAGE = 500


def to_all() -> dict[str, object]:
    return posting(receivers=f"http://auth/api/v1/users/?page_size={PAGE}")


def is_wanted(user: dict[str, object]) -> bool:
    """Whether a user of the sandbox wants the e-mail, said another way than the product does."""
    there = user["timezone"] is None or "/" in str(user["timezone"]) or user["timezone"] == "UTC"
    return bool(
        user["is_active"]
        and user["email_notifications"]
        and user["email"]
        and there
        and user["timezone"] != "Mars/Olympus_Mons"
    )


async def everybody_has_it(around: Around, users: int, *, repeats: int) -> None:
    """Wait until all who want it have it, under one id each, and nobody else."""
    directory = around.directory(users)
    wanted = {user["id"] for user in directory if is_wanted(user)}
    await around.until(len(wanted))
    assert around.ids.keys() == wanted
    assert {len(ids) for ids in around.ids.values()} == {1}, "a user under two ids"
    assert sum(ids.total() for ids in around.ids.values()) - len(wanted) <= repeats


async def test_e7_killed_twice_in_the_middle_nobody_is_left_out_and_ids_stay(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await emptied(own_database.url)
    async with sandbox(users=USERS) as users, outside(amqp_url) as around:
        settings = {
            "RINGBACK_DATABASE_URL": own_database.url,
            "RINGBACK_SOURCES": f"auth={users.url}auth",
        }
        id_ = await around.post(to_all())
        for reached in (2_000, 8_000):
            with running(tmp_path, amqp_url, settings, HASTY) as it:
                await around.until(reached)
                it.kill()
            assert len(around.ids) < USERS // 2 + 2_000, "too late to show anything"
        with running(tmp_path, amqp_url, settings, HASTY) as it:
            await everybody_has_it(around, USERS, repeats=2 * PAGE)
            status = await around.ended(id_)
            assert not it.logged("bug")
    assert (status["status"], status["pages"]) == ("sending", USERS // PAGE + 1)
    assert status["messages"]["created"] == len(around.ids)
    assert sum(status["messages"].values()) == status["receivers"] == USERS


async def test_row_19_a_database_that_stops_and_starts_leaves_nobody_out(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await emptied(own_database.url)
    async with sandbox(users=FEWER) as users, outside(amqp_url) as around:
        settings = {
            "RINGBACK_DATABASE_URL": own_database.url,
            "RINGBACK_SOURCES": f"auth={users.url}auth",
        }
        with running(tmp_path, amqp_url, settings, HASTY) as it:
            await it.ready()
            id_ = await around.post(to_all())
            await around.until(1_000)
            await asyncio.to_thread(own_database.stop, immediate=True)
            await asyncio.to_thread(own_database.start)
            await everybody_has_it(around, FEWER, repeats=PAGE)
            status = await around.ended(id_)
            assert not it.logged("bug")
    assert status["receivers"] == FEWER
