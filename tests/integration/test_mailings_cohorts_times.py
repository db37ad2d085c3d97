"""M2, M5: mailings are expanded in the local hours of clients, at a rate, before their end."""

import asyncio
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.mailings.campaigns.domain import cohort_id
from services.mailings.campaigns.windows import Hours, current_or_next
from services.mailings.expansion import worker as worker_module
from services.mailings.store import Store
from tests.fakes.cohorts import add_clients, client_id, recipients, row, sent, start_mailing
from tests.fakes.mailing import Mailings, empty_mailings, running_mailings
from tests.fakes.waiting import until

MOSCOW = "Europe/Moscow"
TOKYO = "Asia/Tokyo"


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


def open_now(zone: str) -> tuple[time, time]:
    """Return local hours that began an hour ago and end in two hours."""
    now = datetime.now(ZoneInfo(zone)).replace(second=0, microsecond=0, tzinfo=None)
    return (now - timedelta(hours=1)).time(), (now + timedelta(hours=2)).time()


def closed_now(zone: str) -> tuple[time, time]:
    """Return local hours that ended an hour ago."""
    now = datetime.now(ZoneInfo(zone)).replace(second=0, microsecond=0, tzinfo=None)
    return (now - timedelta(hours=2)).time(), (now - timedelta(hours=1)).time()


@pytest.mark.parametrize(
    ("status", "unconfirmed"),
    [("paused", 0), ("cancelled", 0), ("finished", 0), ("running", 1)],
)
async def test_m2_a_mailing_that_is_stopped_is_not_expanded(
    mailings: Mailings, status: str, unconfirmed: int
) -> None:
    await add_clients(mailings, 1, 2)
    await start_mailing(mailings)
    await mailings.database.execute(
        "UPDATE mailings.mailings SET status = $1, stop_version = $2", status, unconfirmed
    )

    assert await mailings.expansion.run_once(4) == 0

    await mailings.database.execute(
        "UPDATE mailings.mailings SET status = 'running', stop_confirmed = stop_version"
    )
    await mailings.expand_all()
    assert recipients(mailings) == [client_id(1), client_id(2)]


async def test_m2_nothing_is_published_after_the_end_time(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 2)
    mailing = await start_mailing(mailings, end_at=datetime.now(UTC) - timedelta(seconds=1))
    mailings.clock.offset = -60  # only the clock of the database counts

    await mailings.expand_all()

    assert not mailings.broker.sent
    assert (await row(mailings, mailing))["ended"] == "expired"


async def test_m2_a_new_end_time_of_a_mailing_counts(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 2)
    await start_mailing(mailings)
    end_at = datetime.now(UTC) + timedelta(minutes=5)
    await mailings.database.execute("UPDATE mailings.mailings SET end_at = $1", end_at)

    await mailings.expand_all()

    assert {each.expires_at for each in sent(mailings)} == {end_at}


async def test_m5_a_cohort_is_expanded_at_the_opening_of_its_time_zone(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 2, timezone=MOSCOW)
    await add_clients(mailings, 3, 4, timezone=TOKYO)
    opens, closes = open_now(MOSCOW)

    mailing = await start_mailing(mailings, zones=(MOSCOW, TOKYO), hours=(opens, closes))
    before = datetime.now(UTC)
    await mailings.expand_all()

    window = current_or_next(Hours(opens, closes), ZoneInfo(MOSCOW), before)
    assert recipients(mailings) == [client_id(1), client_id(2)]
    assert {each.send_until for each in sent(mailings)} == {window.closes}
    waiting = await row(mailings, mailing, TOKYO)
    opening = current_or_next(Hours(opens, closes), ZoneInfo(TOKYO), before).opens
    assert opening <= waiting["due_at"] < opening + timedelta(seconds=10)
    assert waiting["ended"] is None


async def test_m5_a_cohort_whose_window_never_opens_before_the_end_expires(
    mailings: Mailings,
) -> None:
    await add_clients(mailings, 1, 2)
    end_at = datetime.now(UTC) + timedelta(minutes=5)
    mailing = await start_mailing(
        mailings, zones=(MOSCOW,), hours=closed_now(MOSCOW), end_at=end_at
    )

    await mailings.expand_all()

    assert not mailings.broker.sent
    waiting = await row(mailings, mailing, MOSCOW)
    assert end_at <= waiting["due_at"] < end_at + timedelta(seconds=10)


async def test_m5_a_slice_stops_at_the_closing_and_continues_at_the_next_opening(
    url: str,
) -> None:
    class ClosesAfterTheFirstPage(Store):
        async def checkpoint(self, *args: Any, **options: Any) -> Any:
            process.clock.offset = 3 * 3600
            return await super().checkpoint(*args, **options)

    async with running_mailings(url, {}, store=ClosesAfterTheFirstPage) as process:
        mailings = process
        await add_clients(mailings, 1, 1100)
        hours = open_now(MOSCOW)
        mailing = await start_mailing(mailings, zones=(MOSCOW,), hours=hours)
        now = datetime.now(UTC)
        await mailings.expand_all()
        closed = await row(mailings, mailing, MOSCOW)
        first = len(mailings.broker.sent)

        # The next day: another process, whose window is open.
        await mailings.make_due(cohort_id(mailing, MOSCOW))
    async with running_mailings(url, {}, broker=mailings.broker) as mailings:
        await mailings.expand_all()

    next_opening = current_or_next(Hours(*hours), ZoneInfo(MOSCOW), now).opens + timedelta(days=1)
    # The clock of the test is three hours ahead of that of the database.
    due_at = closed["due_at"] + timedelta(hours=3)
    assert abs(due_at - next_opening) < timedelta(seconds=10)
    assert first == 500
    assert recipients(mailings) == [client_id(number) for number in range(1, 1101)]


async def test_m2_a_rate_limits_the_messages(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 5)
    mailing = await start_mailing(mailings, rate=1)
    cohort = cohort_id(mailing, None)

    await mailings.expansion.run_once(4)
    waiting = await row(mailings, mailing)
    for _ in range(2):
        await mailings.make_due(cohort)
        await mailings.expansion.run_once(4)
    assert recipients(mailings) == [client_id(1)]
    assert timedelta(seconds=40) < waiting["due_at"] - datetime.now(UTC) <= timedelta(seconds=60)

    await mailings.make_due(cohort)
    await mailings.database.execute("UPDATE mailings.mailings SET paced_until = now()")
    await mailings.expansion.run_once(4)
    assert recipients(mailings) == [client_id(1), client_id(2)]


async def test_m2_cohorts_share_the_rate_of_their_mailing(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 200, timezone=MOSCOW)
    await add_clients(mailings, 201, 400, timezone=TOKYO)
    await start_mailing(mailings, zones=(MOSCOW, TOKYO), rate=6000)

    await mailings.expansion.run_once(4)

    assert len(mailings.broker.sent) == 100, "the messages of one second"


async def test_m2_a_rate_wakes_one_cohort_at_a_time_and_each_in_turn(mailings: Mailings) -> None:
    zones = ("Asia/Omsk", "Asia/Tokyo", "Europe/Moscow", "UTC")
    for number, zone in enumerate(zones):
        await add_clients(mailings, 2 * number + 1, 2 * number + 2, timezone=zone)
    await start_mailing(mailings, zones=zones, rate=60)

    claimed = []
    for _ in zones:
        claimed += [await mailings.expansion.run_once(100) for _ in range(3)]
        await mailings.database.execute("UPDATE mailings.mailings SET paced_until = now()")

    assert claimed == [1, 0, 0] * len(zones)
    reached = {int(recipient[-1]) for recipient in recipients(mailings)}
    assert reached == {1, 3, 5, 7}, "the first client of each time zone"


async def test_m2_a_message_is_sent_when_the_rate_permits_it(
    mailings: Mailings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "POLL_INTERVAL", 300.0)
    await add_clients(mailings, 1, 2)
    await start_mailing(mailings, rate=30)
    running = asyncio.create_task(mailings.expansion.run())
    try:
        await until(lambda: len(mailings.broker.sent) == 2, 60)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_m2_without_a_rate_nothing_is_paced(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 1100)
    mailing = await start_mailing(mailings, rate=60)
    await mailings.database.execute("UPDATE mailings.mailings SET rate_per_minute = NULL")

    await mailings.expand_all()

    assert len(mailings.broker.sent) == 1100
    assert (await row(mailings, mailing))["ended"] == "expanded"
