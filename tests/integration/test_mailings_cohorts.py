"""Mailings become messages: the clients of a filter, in their local hours, at a rate."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from services.mailings.campaigns.domain import cohort_id
from services.mailings.campaigns.windows import Hours, current_or_next
from services.mailings.domain import message_id
from services.mailings.expansion import slice as slice_module
from services.mailings.expansion import worker as worker_module
from services.mailings.records import Claim, MessageChange, ReturnedMessage
from services.mailings.store import Store
from shared.contracts.message_facts import ReasonCode
from shared.contracts.messages import SendSms
from shared.contracts.posting_requests import MessageState
from shared.postgres.pool import StoreConnectionLostError
from tests.fakes.campaigns import CampaignProcess
from tests.fakes.cohorts import add_clients, client_id, start_mailing, statuses
from tests.fakes.mailing import Mailings, empty_mailings, running_mailings
from tests.fakes.waiting import until

STOPPED = ReasonCode.STOPPED

MOSCOW = "Europe/Moscow"
TOKYO = "Asia/Tokyo"


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


@pytest.fixture
async def mailings(url: str) -> AsyncIterator[Mailings]:
    async with running_mailings(url, {}) as running:
        yield running


def sent(mailings: Mailings) -> list[SendSms]:
    return [SendSms.model_validate_json(message.body) for message in mailings.broker.sent]


def recipients(mailings: Mailings) -> list[str]:
    return [str(message.recipient_id) for message in sent(mailings)]


async def row(mailings: Mailings, mailing: UUID, zone: str | None = None) -> Any:
    return await mailings.database.fetchrow(
        "SELECT * FROM mailings.postings WHERE id = $1", cohort_id(mailing, zone)
    )


async def reasons(mailings: Mailings, status: str) -> list[str]:
    rows = await mailings.database.fetch(
        "SELECT reason FROM mailings.messages WHERE status = $1", status
    )
    return [each["reason"] for each in rows]


def open_now(zone: str) -> tuple[time, time]:
    """Return local hours that began an hour ago and end in two hours."""
    now = datetime.now(ZoneInfo(zone)).replace(second=0, microsecond=0, tzinfo=None)
    return (now - timedelta(hours=1)).time(), (now + timedelta(hours=2)).time()


def closed_now(zone: str) -> tuple[time, time]:
    """Return local hours that ended an hour ago."""
    now = datetime.now(ZoneInfo(zone)).replace(second=0, microsecond=0, tzinfo=None)
    return (now - timedelta(hours=2)).time(), (now - timedelta(hours=1)).time()


async def test_m2_m3_the_clients_of_a_filter_get_one_message_each(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 3)
    await add_clients(mailings, 4, 5, operator_code="901")
    await add_clients(mailings, 6, 7, tag="other")
    await add_clients(mailings, 8, 9, owner="shop")
    end_at = datetime.now(UTC) + timedelta(days=1)

    mailing = await start_mailing(
        mailings,
        "{{ user.tag|upper }} {{ user.phone }}",
        operator_codes=("900", "902"),
        tags=("vip",),
        end_at=end_at,
    )
    await mailings.expand_all()

    assert [(each.recipient_id, each.phone, each.text) for each in sent(mailings)] == [
        (client_id(number), f"7900000000{number}", f"VIP 7900000000{number}")
        for number in (1, 2, 3)
    ]
    for each in sent(mailings):
        assert each.mailing_id == str(mailing)
        assert each.posting_id == str(cohort_id(mailing, None))
        assert each.id == str(message_id(mailing, "sms", str(each.recipient_id)))
        assert (each.expires_at, each.send_until, each.user_id) == (end_at, None, None)
    stored = await mailings.database.fetch("SELECT * FROM mailings.messages ORDER BY user_id")
    assert [(each["user_id"], each["operator_code"]) for each in stored] == [
        (client_id(number), "900") for number in (1, 2, 3)
    ]
    cohort = await row(mailings, mailing)
    assert (cohort["ended"], cohort["receivers"], cohort["created"]) == ("expanded", 3, 3)


async def test_m3_the_message_to_a_client_is_found_by_their_id(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 600)
    mailing = await start_mailing(mailings)
    await mailings.expand_all()
    process = CampaignProcess(mailings.database)

    async def messages(**query: Any) -> list[Any]:
        page = await process.request("ListMailingMessages", None, id=str(mailing), **query)
        assert page.next_cursor is None
        return [(message.client_id, message.status) for message in page.items]

    assert await messages(client_id=client_id(7)) == [(client_id(7), "created")]
    assert await messages(client_id=client_id(7), status="created") == [(client_id(7), "created")]
    assert await messages(client_id=client_id(7), status="sent") == []
    assert await messages(client_id=client_id(601)) == []


async def test_m2_a_caller_reaches_only_its_own_clients(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 2, owner="shop")
    await add_clients(mailings, 3, 4, owner="bank")
    await add_clients(mailings, 5, 6)

    await start_mailing(mailings, owner="shop")
    await mailings.expand_all()

    assert recipients(mailings) == [client_id(1), client_id(2)]


async def test_e7_m2_pages_are_in_order_and_each_has_a_checkpoint(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 1100)

    mailing = await start_mailing(mailings)
    await mailings.expand_all()

    assert recipients(mailings) == [client_id(number) for number in range(1, 1101)]
    cohort = await row(mailings, mailing)
    assert (cohort["pages"], cohort["receivers"], cohort["ended"]) == (3, 1100, "expanded")


async def test_m2_a_mailing_to_nobody_ends(mailings: Mailings) -> None:
    mailing = await start_mailing(mailings)
    await mailings.expand_all()

    assert (await row(mailings, mailing))["ended"] == "expanded"


async def test_m1_a_client_that_is_deleted_during_a_mailing_gets_nothing_from_later_pages(
    mailings: Mailings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)
    await add_clients(mailings, 1, 1100)

    await start_mailing(mailings)
    await mailings.expansion.run_once(4)
    assert len(mailings.broker.sent) == 500
    await mailings.database.execute(
        "DELETE FROM mailings.clients WHERE id = ANY ($1)", [client_id(3), client_id(700)]
    )
    await mailings.expand_all()

    expected = [client_id(number) for number in range(1, 1101) if number != 700]
    assert recipients(mailings) == expected


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


async def take_back(mailings: Mailings, mailing: UUID, numbers: Sequence[int]) -> None:
    cohort = cohort_id(mailing, None)
    ids = [message_id(mailing, "sms", client_id(number)) for number in numbers]
    await mailings.store.take_back(dict.fromkeys([(cohort, id_) for id_ in ids], STOPPED))


async def test_m2_returned_messages_are_published_again_under_their_ids(
    mailings: Mailings,
) -> None:
    await add_clients(mailings, 1, 1200)
    mailing = await start_mailing(mailings)
    await mailings.expand_all()
    first = sent(mailings)
    mailings.broker.sent.clear()

    await take_back(mailings, mailing, range(1, 1101))
    assert (await row(mailings, mailing))["ended"] is None
    await mailings.expand_all()

    again = sent(mailings)
    assert Counter(each.recipient_id for each in again) == Counter(
        client_id(number) for number in range(1, 1101)
    )
    assert {each.id for each in again} <= {each.id for each in first}
    assert await statuses(mailings, mailing) == {"created": 1200}
    cohort = await row(mailings, mailing)
    assert (cohort["ended"], cohort["created"], cohort["receivers"]) == ("expanded", 1200, 1200)


async def test_m2_messages_that_are_settled_are_not_published_again(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 3)
    mailing = await start_mailing(mailings)
    await mailings.expand_all()
    mailings.broker.sent.clear()
    cohort = cohort_id(mailing, None)

    await take_back(mailings, mailing, (1, 2))
    id_ = message_id(mailing, "sms", client_id(1))
    await mailings.store.settle([MessageChange(cohort, id_, MessageState.SENT, None, None)])
    await take_back(mailings, mailing, (1,))
    await mailings.expand_all()

    assert recipients(mailings) == [client_id(2)]


async def test_m1_a_returned_message_of_a_deleted_client_is_cancelled(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 3)
    mailing = await start_mailing(mailings)
    await mailings.expand_all()
    mailings.broker.sent.clear()

    await mailings.database.execute("DELETE FROM mailings.clients WHERE id = $1", client_id(2))
    await take_back(mailings, mailing, (1, 2))
    await mailings.expand_all()

    assert recipients(mailings) == [client_id(1)]
    assert await statuses(mailings, mailing) == {"created": 2, "cancelled": 1}
    assert await reasons(mailings, "cancelled") == ["the client was deleted"]
    cohort = await row(mailings, mailing)
    assert (cohort["ended"], cohort["created"], cohort["cancelled"]) == ("expanded", 2, 1)


async def test_m2_a_message_that_is_returned_while_it_is_published_again_is_not_forgotten(
    url: str,
) -> None:
    class ReturnsOnceMore(Store):
        times = 0

        async def published_again(self, claim: Claim, messages: Sequence[ReturnedMessage]) -> None:
            if self.times < 1:
                self.times += 1
                await self.take_back({(claim.id, each.id): STOPPED for each in messages})
            await super().published_again(claim, messages)

    async with running_mailings(url, {}, store=ReturnsOnceMore) as mailings:
        await add_clients(mailings, 1, 1)
        mailing = await start_mailing(mailings)
        await mailings.expand_all()
        await take_back(mailings, mailing, (1,))
        await mailings.expand_all()

    assert recipients(mailings) == [client_id(1)] * 3


async def test_m2_a_message_that_is_returned_before_the_last_checkpoint_is_not_forgotten(
    url: str,
) -> None:
    class ReturnsBeforeTheCheckpoint(Store):
        times = 0

        async def checkpoint(self, claim: Claim, **options: Any) -> Any:
            if self.times < 1:
                self.times += 1
                await self.take_back(
                    {(claim.id, message_id(mailing, "sms", client_id(1))): STOPPED}
                )
            return await super().checkpoint(claim, **options)

    async with running_mailings(url, {}, store=ReturnsBeforeTheCheckpoint) as mailings:
        await add_clients(mailings, 1, 2)
        mailing = await start_mailing(mailings)
        await mailings.expand_all()

    assert recipients(mailings) == [client_id(1), client_id(2), client_id(1)]


async def test_e7_m2_an_interrupted_slice_continues_at_its_checkpoint(url: str) -> None:
    class FailsAtTheSecondCheckpoint(Store):
        async def checkpoint(self, *args: Any, pages: int, **options: Any) -> Any:
            if pages > 1:
                raise StoreConnectionLostError("the database is gone")
            return await super().checkpoint(*args, pages=pages, **options)

    async with running_mailings(url, {}, store=FailsAtTheSecondCheckpoint) as mailings:
        await add_clients(mailings, 1, 1100)
        mailing = await start_mailing(mailings)
        await mailings.expansion.run_once(4)
        await mailings.make_due(cohort_id(mailing, None))
    async with running_mailings(url, {}, broker=mailings.broker) as mailings:
        await mailings.expand_all()
        assert await statuses(mailings, mailing) == {"created": 1100}

    counts = Counter(recipients(mailings))
    assert counts.keys() == {client_id(number) for number in range(1, 1101)}
    assert counts.total() - 1100 <= 500, "at most one page is repeated"
    assert len({each.id for each in sent(mailings)}) == 1100


async def test_m2_a_text_that_fails_for_one_client_skips_it(mailings: Mailings) -> None:
    await add_clients(mailings, 1, 1)
    await add_clients(mailings, 2, 2, tag=None)
    mailing = await start_mailing(mailings, "Hello {{ user.tag }}")

    await mailings.expand_all()

    assert recipients(mailings) == [client_id(1)]
    assert await statuses(mailings, mailing) == {"created": 1, "skipped": 1}
    assert await reasons(mailings, "skipped") == [
        "sms/text line 1: user.tag is null; use |default(…) to replace it"
    ]


async def test_m2_a_text_that_is_not_valid_fails_before_anything_is_sent(
    mailings: Mailings,
) -> None:
    await add_clients(mailings, 1, 1)
    mailing = await start_mailing(mailings, "Hello {{ name }}")

    await mailings.expand_all()

    cohort = await row(mailings, mailing)
    assert (cohort["ended"], cohort["reason"]) == (
        "failed",
        "sms/text line 1: name is missing in the context",
    )
    assert not mailings.broker.sent
