"""Subscriptions under kills and outages: each user event is appended once, without gaps."""

import asyncio
import signal
from pathlib import Path

import pytest

from deploy.local.database import Database
from shared.contracts.polls import decode_user_cursor
from tests.acceptance.crashing_subscriptions import POINTS
from tests.fakes.crash_points import slow_except
from tests.fakes.messenger import RUN_SUBSCRIPTIONS, empty_subscriptions
from tests.fakes.service import running
from tests.fakes.system import SECRETS_KEY
from tests.fakes.user_events import UserEventsClient, user_events_client

CRASHING = ("-m", "tests.acceptance.crashing_subscriptions")


async def check(client: UserEventsClient, token: str, numbers: range) -> None:
    """Check that the events of a user are these, numbered from 1."""
    assert sorted(await client.events(token, len(numbers))) == list(numbers)
    page = await client("ReadEvents", token_hash=token)
    assert page["events"] == []
    assert decode_user_cursor(page["next_cursor"]).sequence == len(numbers)


@pytest.mark.parametrize("point", slow_except(POINTS, "after the commit"))
async def test_u6_a_kill_at_any_point_loses_and_repeats_no_event(
    amqp_url: str, own_database: Database, tmp_path: Path, point: str
) -> None:
    await empty_subscriptions(own_database.url)
    settings = {"RINGBACK_DATABASE_URL": own_database.url, "RINGBACK_SECRETS_KEY": SECRETS_KEY}
    sent = 0
    with running(tmp_path, amqp_url, settings, RUN_SUBSCRIPTIONS) as first:
        await first.ready()
        async with user_events_client(amqp_url) as client:
            user_id, token = await client.user()
        first.signal(signal.SIGTERM)
        assert await first.exit_code() == 0, first.output
    async with user_events_client(amqp_url) as client:
        with running(tmp_path, amqp_url, settings, (*CRASHING, point)) as dying:
            while not dying.exited():
                for number in range(sent, sent + 20):
                    await client.publish(user_id, number, id=f"event-{number}")
                sent += 20
            assert await dying.exit_code() == -signal.SIGKILL, dying.output
        with running(tmp_path, amqp_url, settings, (*CRASHING, "never")) as second:
            await second.ready()
            await check(client, token, range(sent))
            await client.dead_letters_are(0)


async def test_row_19_a_database_restart_loses_no_user_event(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await empty_subscriptions(own_database.url)
    settings = {"RINGBACK_DATABASE_URL": own_database.url, "RINGBACK_SECRETS_KEY": SECRETS_KEY}
    with running(tmp_path, amqp_url, settings, RUN_SUBSCRIPTIONS) as service:
        await service.ready()
        async with user_events_client(amqp_url) as client:
            user_id, token = await client.user()
            await asyncio.gather(*(client.publish(user_id, n, id=f"e{n}") for n in range(300)))
            await asyncio.to_thread(own_database.stop, immediate=True)
            await asyncio.gather(*(client.publish(user_id, n, id=f"e{n}") for n in range(100, 600)))
            await asyncio.to_thread(own_database.start)
            await check(client, token, range(600))
        assert not service.logged("bug")
