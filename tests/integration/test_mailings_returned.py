"""M2, M5: messages that delivery returns wait in their mailing, and are published again."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.mailings.campaigns.domain import cohort_id
from services.mailings.domain import message_id
from shared.contracts.messages import SendSms
from tests.fakes.cohorts import add_clients, client_id, start_mailing, statuses
from tests.fakes.mailing import Mailings, empty_mailings, running_mailings

CLIENTS = 20


@pytest.fixture
async def mailings(database_url: str) -> AsyncIterator[Mailings]:
    async with running_mailings(await empty_mailings(database_url), {}) as running:
        await add_clients(running, 1, CLIENTS)
        yield running


@pytest.fixture
async def mailing(mailings: Mailings) -> UUID:
    """Start a mailing, and publish all its messages."""
    id_ = await start_mailing(mailings)
    await mailings.expand_all()
    assert len(mailings.broker.sent) == CLIENTS
    mailings.broker.sent.clear()
    return id_


def fact(mailing: UUID, number: int, kind: str, **fields: Any) -> dict[str, Any]:
    """Make a fact about the message to a client."""
    id_ = message_id(mailing, "sms", client_id(number))
    return {
        "type": f"message.{kind}",
        "fact_id": f"{id_}/{kind}",
        "at": "2026-11-20T15:00:00Z",
        "message_id": str(id_),
        "posting_id": str(cohort_id(mailing, None)),
        "mailing_id": str(mailing),
        "recipient_id": client_id(number),
        "channel": "sms",
        "attempt": 1,
        **fields,
    }


def returned(mailing: UUID, number: int, code: str = "stopped") -> dict[str, Any]:
    return fact(mailing, number, "returned", code=code)


def expired(mailing: UUID, number: int, expires_at: datetime | None) -> dict[str, Any]:
    time = expires_at and expires_at.isoformat()
    return fact(mailing, number, "expired", reason="expired", expires_at=time)


async def end_at(mailings: Mailings, mailing: UUID) -> datetime:
    row = await mailings.database.fetchrow(
        "SELECT end_at FROM mailings.mailings WHERE id = $1", mailing
    )
    end: datetime = row["end_at"]
    return end


def sent(mailing: UUID, number: int) -> dict[str, Any]:
    return fact(mailing, number, "sent", duration=0.1)


async def set_status(mailings: Mailings, mailing: UUID, status: str) -> None:
    await mailings.database.execute(
        "UPDATE mailings.mailings SET status = $2 WHERE id = $1", mailing, status
    )


async def ended(mailings: Mailings, mailing: UUID) -> str | None:
    row = await mailings.database.fetchrow(
        "SELECT ended FROM mailings.postings WHERE mailing_id = $1", mailing
    )
    return None if row["ended"] is None else str(row["ended"])


def published(mailings: Mailings) -> Counter[str]:
    """Return how often a message to each client was published since the first time."""
    commands = [SendSms.model_validate_json(each.body) for each in mailings.broker.sent]
    return Counter(str(command.recipient_id) for command in commands)


async def test_m2_messages_of_a_paused_mailing_wait_until_it_continues(
    mailings: Mailings, mailing: UUID
) -> None:
    await set_status(mailings, mailing, "paused")
    await mailings.settle(sent(mailing, 1), *(returned(mailing, number) for number in (2, 3)))
    await mailings.expand_all()
    assert published(mailings) == Counter()
    assert await statuses(mailings, mailing) == {"sent": 1, "created": CLIENTS - 1}

    await set_status(mailings, mailing, "running")
    await mailings.expand_all()
    assert published(mailings) == Counter([client_id(2), client_id(3)])
    assert await ended(mailings, mailing) == "expanded"
    await mailings.settle(*(sent(mailing, number) for number in range(2, CLIENTS + 1)))
    assert await statuses(mailings, mailing) == {"sent": CLIENTS}


async def test_m2_a_message_that_is_returned_after_the_mailing_continued_is_not_forgotten(
    mailings: Mailings, mailing: UUID
) -> None:
    await mailings.settle(returned(mailing, 1), returned(mailing, 1))
    await mailings.expand_all()
    await mailings.settle(returned(mailing, 1))  # a process that had read the stop before
    await mailings.expand_all()
    assert published(mailings) == Counter({client_id(1): 2})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_m2_a_message_that_was_sent_is_not_published_again(
    mailings: Mailings, mailing: UUID, order: tuple[int, int]
) -> None:
    """A copy of it was returned: its first fact or its acknowledgement was lost."""
    facts = sent(mailing, 1), returned(mailing, 1)
    await mailings.settle(*(facts[index] for index in order))
    await mailings.settle(returned(mailing, 1))
    await mailings.expand_all()
    assert published(mailings) == Counter()
    assert await statuses(mailings, mailing) == {"sent": 1, "created": CLIENTS - 1}


async def test_m2_row_24_a_process_whose_clock_is_ahead_expires_nothing_before_the_end(
    mailings: Mailings,
) -> None:
    mailings.clock.offset = 3600.0
    mailing = await start_mailing(mailings, end_at=datetime.now(UTC) + timedelta(minutes=30))
    await mailings.expand_all()
    assert await statuses(mailings, mailing) == {"created": CLIENTS}
    assert await ended(mailings, mailing) == "expanded"


@pytest.mark.parametrize("status", ["running", "paused"])
async def test_m2_a_message_that_expired_before_a_later_end_time_is_published_again(
    mailings: Mailings, mailing: UUID, status: str
) -> None:
    """Its `expires_at` is the end time at which the mailing would have ended before a change."""
    await set_status(mailings, mailing, status)
    before = await end_at(mailings, mailing) - timedelta(minutes=1)
    await mailings.settle(expired(mailing, 1, before), sent(mailing, 2))
    assert await statuses(mailings, mailing) == {"sent": 1, "created": CLIENTS - 1}
    await set_status(mailings, mailing, "running")
    await mailings.expand_all()
    assert published(mailings) == Counter([client_id(1)])


async def test_m2_a_message_that_expired_at_the_end_time_is_settled(
    mailings: Mailings, mailing: UUID
) -> None:
    """So is one of an older version of delivery, which does not say when it expired."""
    end = await end_at(mailings, mailing)
    await mailings.settle(
        expired(mailing, 1, end),
        expired(mailing, 2, None),
        expired(mailing, 3, end - timedelta(minutes=1)) | {"mailing_id": "m-1"},
    )
    await set_status(mailings, mailing, "cancelled")
    await mailings.settle(expired(mailing, 4, end - timedelta(minutes=1)))
    assert await statuses(mailings, mailing) == {"expired": 4, "created": CLIENTS - 4}


@pytest.mark.parametrize("status", ["cancelled", "finished"])
async def test_m2_nothing_of_a_mailing_that_has_ended_is_published_again(
    mailings: Mailings, mailing: UUID, status: str
) -> None:
    await set_status(mailings, mailing, status)
    await mailings.settle(returned(mailing, 1))
    await mailings.expand_all()
    assert published(mailings) == Counter()
    assert await ended(mailings, mailing) == "expanded", "its retention has begun"


async def test_m5_a_message_whose_window_has_closed_is_published_again(
    mailings: Mailings, mailing: UUID
) -> None:
    await mailings.settle(returned(mailing, 1, "window_closed"))
    await mailings.expand_all()
    assert published(mailings) == Counter([client_id(1)])


async def test_n12_a_message_that_a_newer_version_returns_for_a_new_reason_is_not_lost(
    mailings: Mailings, mailing: UUID
) -> None:
    await mailings.settle(returned(mailing, 1, "invented_later"))
    await mailings.expand_all()
    assert published(mailings) == Counter([client_id(1)])


async def test_m2_returned_messages_of_others_are_ignored(
    mailings: Mailings, mailing: UUID
) -> None:
    foreign = {"posting_id": None}, {"posting_id": "p-1"}, {"message_id": "m-1"}
    unknown = {"message_id": str(mailing)}, {"posting_id": str(mailing)}
    await mailings.settle(*(returned(mailing, 1) | each for each in (*foreign, *unknown)))
    await mailings.expand_all()
    assert published(mailings) == Counter()
