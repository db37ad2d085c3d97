"""M2: a mailing to 10,000 clients survives kill -9, without a gap or a second message."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from deploy.local.database import Database
from tests.fakes.cohorts import FILL_CLIENTS, client_id
from tests.fakes.mailing import empty_mailings
from tests.fakes.mailings_client import SHORT_QUEUES, mailings_client
from tests.fakes.service import running

SHORT_LEASES = ("-m", "tests.acceptance.short_lease_mailings")
CLIENTS = 10_000
PAGE = 500
KILLS = 2


@pytest.mark.slow
async def test_e7_m2_two_kills_skip_no_client_and_send_no_second_message(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await empty_mailings(own_database.url)
    database = await asyncpg.connect(own_database.url)
    zones = ("Europe/Moscow", "Asia/Tokyo")
    for first, zone in zip((1, CLIENTS // 2 + 1), zones, strict=True):
        await database.execute(
            *(FILL_CLIENTS, first, first + CLIENTS // 2 - 1, "900", "vip", "", zone)
        )
    settings = {"RINGBACK_DATABASE_URL": own_database.url, **SHORT_QUEUES}
    now = datetime.now(UTC)
    # Open all day in both time zones, except a minute that was three or nine hours ago.
    closed = now.astimezone(ZoneInfo(zones[0])) - timedelta(hours=3)
    mailing = {
        "text": "Hello",
        "end_at": (now + timedelta(hours=1)).isoformat(),
        "filter": {"tags": ["vip"]},
        "local_hours": {
            "from": f"{closed + timedelta(minutes=1):%H:%M}",
            "to": f"{closed:%H:%M}",
        },
    }
    async with mailings_client(amqp_url) as client:
        with running(tmp_path, amqp_url, settings, (*SHORT_LEASES, "3")) as service:
            await service.ready()
            created = await client.request("CreateMailing", mailing=mailing)
            assert await service.exit_code() == -9, service.output
        with running(tmp_path, amqp_url, settings, (*SHORT_LEASES, "5")) as service:
            assert await service.exit_code() == -9, service.output
        with running(tmp_path, amqp_url, settings, SHORT_LEASES) as service:
            await client.wait_for_users(CLIENTS)
            assert not service.logged("bug")
            rows = await database.fetch(
                "SELECT user_id FROM mailings.messages WHERE posting_id IN"
                " (SELECT id FROM mailings.postings WHERE mailing_id = $1)",
                created["id"],
            )
            counted = await database.fetchval(
                "SELECT sum(count) FROM mailings.statistics WHERE mailing_id = $1", created["id"]
            )
    await database.close()
    assert {row["user_id"] for row in rows} == client.ids.keys()
    assert len(rows) == counted == CLIENTS
    assert {len(ids) for ids in client.ids.values()} == {1}, "a client has two ids"
    repeats = Counter[bool]()
    for id_, ids in client.ids.items():
        repeats[id_ > client_id(CLIENTS // 2)] += ids.total() - 1  # by time zone
    # Each kill repeats half of a page, and up to a page of the other time zone.
    assert repeats.total() >= KILLS * PAGE // 2
    assert max(repeats.values()) <= KILLS * PAGE
