"""Mailings become messages: one for each client of a filter, again if it is returned."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.mailings.campaigns.domain import cohort_id
from services.mailings.domain import message_id
from services.mailings.expansion import slice as slice_module
from services.mailings.records import Claim, MessageChange, ReturnedMessage
from services.mailings.store import Store
from shared.contracts.message_facts import ReasonCode
from shared.contracts.posting_requests import MessageState
from shared.postgres.pool import StoreConnectionLostError
from tests.fakes.campaigns import CampaignProcess
from tests.fakes.cohorts import (
    add_clients,
    client_id,
    recipients,
    row,
    sent,
    start_mailing,
    statuses,
)
from tests.fakes.mailing import Mailings, empty_mailings, running_mailings

STOPPED = ReasonCode.STOPPED


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


async def reasons(mailings: Mailings, status: str) -> list[str]:
    rows = await mailings.database.fetch(
        "SELECT reason FROM mailings.messages WHERE status = $1", status
    )
    return [each["reason"] for each in rows]


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
