"""M6: the statistics of a mailing that ends early add up to its audience."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.mailings.expansion import slice as slice_module
from services.mailings.records import MessageRow
from services.mailings.statistics.store import StatisticsStore
from shared.contracts.mailing_statistics import MailingStatistics
from tests.fakes.campaigns import OWNER, CampaignProcess, soon
from tests.fakes.cohorts import add_clients, client_id, statuses
from tests.fakes.mailing import Mailings, empty_mailings, running_mailings
from tests.fakes.reconciliation import reconciled

MOSCOW, TOKYO = "Europe/Moscow", "Asia/Tokyo"


@pytest.fixture
async def mailings(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mailings]:
    monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)  # one page
    async with running_mailings(await empty_mailings(database_url), {}) as running:
        yield running


@pytest.fixture
def process(mailings: Mailings) -> CampaignProcess:
    return CampaignProcess(mailings.database)


async def statistics(mailings: Mailings, mailing_id: UUID) -> MailingStatistics:
    found = await StatisticsStore(mailings.database).of_mailing(OWNER, mailing_id)
    assert found is not None
    await reconciled(mailings.database)
    assert found.total == sum(each.total for each in found.by_operator_code)
    assert found.total == sum(each.total for each in found.by_hour)
    return found


def present(found: MailingStatistics) -> dict[str, int]:
    return {status.value: count for status, count in found.by_status.items() if count}


async def end(process: CampaignProcess, mailing_id: UUID) -> None:
    """Let the end time of a mailing pass, and finish it."""
    now = datetime.now(UTC)
    past = [now - timedelta(seconds=seconds) for seconds in (2, 1)]
    await process.move(mailing_id, start_at=past[0], end_at=past[1])
    await process.worker.attend(mailing_id)


async def test_m6_clients_whom_a_cancelled_mailing_has_not_reached_are_counted_once(
    mailings: Mailings, process: CampaignProcess
) -> None:
    await add_clients(mailings, 1, 700, operator_code="900", owner=OWNER)
    await add_clients(mailings, 701, 1200, operator_code="916", owner=OWNER)
    await add_clients(mailings, 1201, 1300, operator_code="916", owner=OWNER, tag="other")
    await add_clients(mailings, 1301, 1400, operator_code="916", owner="another")
    created = await process.create(filter={"tags": ["vip"]})
    await mailings.expansion.run_once(4)
    assert await statuses(mailings, created.id) == {"created": 500}

    await process.request("CancelMailing", id=str(created.id))
    await process.worker.run_once(10)
    found = await statistics(mailings, created.id)

    assert found.total == 1200
    assert present(found) == {"cancelled": 1200}
    assert found.by_reason == {"stopped": 500, "not_reached": 700}
    assert {each.operator_code: each.total for each in found.by_operator_code} == {
        "900": 700,
        "916": 500,
    }
    overall = await StatisticsStore(mailings.database).overall(OWNER)
    assert overall.total == 1200

    # A crash before the mailing is closed, and two processes that repeat the step.
    await mailings.database.execute("UPDATE mailings.mailings SET closing = true")
    await asyncio.gather(*(process.worker.attend(created.id) for _ in range(2)))
    await mailings.database.execute("UPDATE mailings.postings SET not_reached = NULL")
    await mailings.database.execute(
        "DELETE FROM mailings.statistics WHERE reason_code = 'not_reached'"
    )
    await mailings.database.execute("UPDATE mailings.postings SET cancelled = 500")
    await asyncio.gather(*(process.campaigns.count_not_reached(created.id) for _ in range(4)))
    assert await statistics(mailings, created.id) == found


async def test_m6_clients_with_a_message_of_an_unfinished_page_are_not_counted_twice(
    mailings: Mailings, process: CampaignProcess
) -> None:
    await add_clients(mailings, 1, 1000, owner=OWNER)
    created = await process.create()
    await mailings.expansion.run_once(4)
    [claim] = await mailings.store.claim(0, 1, lease=60)
    rows = [
        MessageRow(UUID(int=number), client_id(number), "sms", "900", None, None, None)
        for number in range(501, 701)
    ]
    await mailings.store.add_messages(claim, 1, rows, remove_unfinished=False)

    await process.request("CancelMailing", id=str(created.id))
    await process.worker.run_once(10)
    found = await statistics(mailings, created.id)
    assert (found.total, present(found)) == (1000, {"cancelled": 1000})
    assert found.by_reason == {"stopped": 700, "not_reached": 300}


async def test_m6_m5_clients_whose_local_hours_did_not_begin_before_the_end_have_expired(
    mailings: Mailings, process: CampaignProcess
) -> None:
    await add_clients(mailings, 1, 30, owner=OWNER, timezone=MOSCOW)
    await add_clients(mailings, 31, 50, owner=OWNER, timezone=TOKYO, operator_code="916")
    now = datetime.now(UTC) + timedelta(hours=3)  # in Moscow; in Tokyo, it is six hours later
    hours = [(now + timedelta(minutes=each)).strftime("%H:%M") for each in (-60, 120)]
    created = await process.create(
        local_hours={"from": hours[0], "to": hours[1]}, end_at=soon(7200)
    )
    for _ in range(3):
        await mailings.expansion.run_once(4)
    assert await statuses(mailings, created.id) == {"created": 30}

    await end(process, created.id)
    found = await statistics(mailings, created.id)
    assert present(found) == {"expired": 50}
    assert found.by_reason == {"expired": 30, "not_reached": 20}
    assert Counter({each.operator_code: each.total for each in found.by_operator_code}) == {
        "900": 30,
        "916": 20,
    }


async def test_m6_m2_a_mailing_whose_text_is_not_valid_shows_the_reason_and_counts_its_clients(
    mailings: Mailings, process: CampaignProcess
) -> None:
    await add_clients(mailings, 1, 30, owner=OWNER)
    created = await process.create(text="Hello {{ user.tag }}")
    assert created.reason is None
    # The text was valid when the mailing was created, as with a template that is changed later.
    await mailings.database.execute("UPDATE mailings.mailings SET text = 'Hello {{ name }}'")
    await mailings.expand_all()
    await process.worker.run_once(10)

    failed = await process.get(created.id)
    assert failed.status == "finished"
    assert failed.reason == "sms/text line 1: name is missing in the context"
    found = await statistics(mailings, created.id)
    assert (present(found), found.by_reason) == ({"failed": 30}, {"not_reached": 30})


async def test_m6_a_mailing_that_never_started_counts_nobody(
    mailings: Mailings, process: CampaignProcess
) -> None:
    await add_clients(mailings, 1, 30, owner=OWNER)
    created = await process.create(start_at=soon(600))
    await process.request("CancelMailing", id=str(created.id))
    await process.worker.run_once(10)
    assert (await statistics(mailings, created.id)).total == 0
