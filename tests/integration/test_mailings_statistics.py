"""M6: the messages of mailings are counted, and the counts equal the rows."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

from services.mailings.records import Claim, MessageChange, MessageRow
from services.mailings.retention import Retention
from services.mailings.statistics.requests import StatisticsRequests
from services.mailings.statistics.store import SQL, StatisticsStore
from shared.amqp.rpc import RequestContext
from shared.contracts.mailing_statistics import MailingStatistics, Statistics
from shared.contracts.message_facts import ReasonCode
from shared.contracts.posting_requests import MessageState
from shared.contracts.requests import Failure
from tests.fakes.mailing import Mailings, posting
from tests.fakes.reconciliation import reconciled

CODES = ("900", "916", "999")
SETTLED = {
    MessageState.SENT: None,
    MessageState.FAILED: ReasonCode.REFUSED,
    MessageState.EXPIRED: ReasonCode.EXPIRED,
    MessageState.CANCELLED: ReasonCode.STOPPED,
}


async def new_mailing(mailings: Mailings, owner: str = "") -> UUID:
    id_ = uuid4()
    await mailings.database.execute(
        "INSERT INTO mailings.mailings (id, client_id, fingerprint, channel, text,"
        " template_context, start_at, end_at, operator_codes, tags, status)"
        " VALUES ($1, $2, '', 'sms', 'Hi', '{}', now(), now() + interval '1 day', '{}', '{}',"
        " 'running')",
        *(id_, owner),
    )
    return id_


async def cohort(mailings: Mailings, mailing_id: UUID | None) -> Claim:
    """Claim a posting, and make it one of a mailing."""
    await mailings.post(posting())
    [claim] = await mailings.store.claim(1, 0, lease=60)
    if mailing_id is not None:
        await mailings.database.execute(
            "UPDATE mailings.postings SET mailing_id = $2, body = NULL WHERE id = $1",
            *(claim.id, mailing_id),
        )
    return claim


def rows(random: Random, size: int) -> list[MessageRow]:
    """Make messages to new clients. Every fifth is skipped."""
    new = [
        MessageRow(uuid4(), str(uuid4()), "sms", random.choice(CODES), None, None, None)
        for _ in range(size)
    ]
    for n in range(0, size, 5):
        code = ReasonCode.INVALID_ADDRESS
        new[n] = new[n]._replace(reason_code=code, reason="invalid phone")
    return new


def settled(
    claim: Claim, messages: Sequence[MessageRow], state: MessageState
) -> list[MessageChange]:
    return [MessageChange(claim.id, each.id, state, SETTLED[state], None) for each in messages]


async def request(mailings: Mailings, operation: str, owner: str | None = None, **body: Any) -> Any:
    handlers = StatisticsRequests(StatisticsStore(mailings.database)).handlers()
    return await handlers[operation](RequestContext(owner), json.dumps(body).encode())


async def test_m6_counts_equal_rows_after_concurrent_changes_of_every_kind(
    mailings: Mailings,
) -> None:
    random = Random(7)
    first, second = [await new_mailing(mailings) for _ in range(2)]
    claims = [await cohort(mailings, each) for each in (first, first, second, None)]
    added: dict[UUID, list[MessageRow]] = {claim.id: [] for claim in claims}

    async def change(claim: Claim) -> None:
        for page in range(12):
            new = rows(random, 20)
            await mailings.store.add_messages(claim, page, new, remove_unfinished=False)
            if page % 3 == 0:  # a crash: the page is repeated with other recipients
                new = rows(random, 20)
                await mailings.store.add_messages(claim, page, new, remove_unfinished=True)
            added[claim.id] += new
            for state in random.sample(list(SETTLED), 2):
                some = random.sample(added[claim.id], 15)
                await mailings.store.settle(settled(claim, some, state))

    async def settle_across() -> None:
        for _ in range(20):
            changes = [
                change
                for claim in claims
                if len(added[claim.id]) > 20
                for change in settled(
                    claim, random.sample(added[claim.id], 5), random.choice(list(SETTLED))
                )
            ]
            await mailings.store.settle(random.sample(changes, len(changes)))

    async with asyncio.timeout(60):
        await asyncio.gather(*map(change, claims), settle_across(), settle_across())
    await mailings.store.finish(claims[2], "expired", None, unpublished_from=6)
    await mailings.database.execute(
        "UPDATE mailings.messages SET created_at = created_at - interval '5 hours' WHERE page = 0"
    )

    in_rows = await reconciled(mailings.database)
    assert sum(in_rows.values()) == 3 * 12 * 20
    assert {row[4] for row in in_rows} == {state.value for state in MessageState}
    statistics: MailingStatistics = await request(mailings, "GetMailingStatistics", id=str(first))
    expected = Counter[str]()
    for (mailing_id, _, _, _, status, _), count in in_rows.items():
        expected[status] += count if mailing_id == first else 0
    assert Counter(statistics.by_status) == expected
    assert statistics.total == 480


async def test_m6_a_mailing_is_counted_by_status_hour_operator_code_and_reason(
    mailings: Mailings,
) -> None:
    mailing_id = await new_mailing(mailings, "shop")
    claims = [await cohort(mailings, mailing_id) for _ in range(2)]
    new = rows(Random(1), 10)
    for claim, part in zip(claims, (new[:4], new[4:]), strict=True):
        await mailings.store.add_messages(claim, 0, part, remove_unfinished=False)
    await mailings.store.settle(
        [
            *settled(claims[0], new[1:3], MessageState.SENT),
            *settled(claims[1], new[6:7], MessageState.FAILED),
        ]
    )
    await mailings.database.execute(
        "UPDATE mailings.messages SET created_at = '2026-11-20 14:59:59+00' WHERE id = $1",
        new[1].id,
    )
    found: MailingStatistics = await request(
        mailings, "GetMailingStatistics", "shop", id=str(mailing_id)
    )
    unknown = await request(mailings, "GetMailingStatistics", None, id=str(mailing_id))

    assert found.total == 10
    assert {state: count for state, count in found.by_status.items() if count} == {
        "created": 5,
        "sent": 2,
        "failed": 1,
        "skipped": 2,
    }
    assert found.by_reason == {"invalid_address": 2, "refused": 1}
    assert [each.total for each in found.by_hour] == [1, 9]
    assert found.by_hour[0].hour == datetime(2026, 11, 20, 14, tzinfo=UTC)
    assert found.by_hour[0].by_status[MessageState.SENT] == 1
    assert {each.operator_code: each.total for each in found.by_operator_code} == Counter(
        each.operator_code for each in new
    )
    assert isinstance(unknown, Failure)
    assert unknown.code == "not_found"


async def test_m6_a_mailing_without_messages_has_statistics(mailings: Mailings) -> None:
    mailing_id = await new_mailing(mailings)
    found = await request(mailings, "GetMailingStatistics", id=str(mailing_id))
    assert (found.total, found.by_hour, found.by_reason) == (0, [], {})


async def test_m6_all_mailings_of_a_caller_are_counted(mailings: Mailings) -> None:
    for owner, sizes in (("shop", (10, 5)), ("shop", ()), ("", (20,))):
        mailing_id = await new_mailing(mailings, owner)
        for size in sizes:
            claim = await cohort(mailings, mailing_id)
            new = rows(Random(1), size)
            await mailings.store.add_messages(claim, 0, new, remove_unfinished=False)
    overall = {
        owner: await request(mailings, "GetStatistics", owner) for owner in ("shop", None, "other")
    }
    assert {owner: (each.mailings, each.total) for owner, each in overall.items()} == {
        "shop": (2, 15),
        None: (1, 20),
        "other": (0, 0),
    }
    assert overall["shop"].by_status["skipped"] == 3


async def test_m6_statistics_outlive_the_retention_of_messages(mailings: Mailings) -> None:
    mailing_id = await new_mailing(mailings)
    claim = await cohort(mailings, mailing_id)
    new = rows(Random(1), 10)
    await mailings.store.add_messages(claim, 0, new, remove_unfinished=False)
    await mailings.store.checkpoint(claim, pages=1, receivers=10, next_page=None, lease=1)
    await mailings.store.settle(settled(claim, new[1:4], MessageState.SENT))

    async def statistics() -> tuple[Statistics, MailingStatistics]:
        return (
            await request(mailings, "GetStatistics"),
            await request(mailings, "GetMailingStatistics", id=str(mailing_id)),
        )

    before = await statistics()
    for update in (
        "UPDATE mailings.postings SET ended_at = now() - interval '31 days'",
        "UPDATE mailings.mailings SET ended_at = now() - interval '31 days'",
    ):
        await mailings.database.execute(update)
    retention = Retention(mailings.store, timedelta(days=30))

    assert await retention.run_once(10) == 1
    assert not await mailings.database.fetch("SELECT FROM mailings.messages")
    assert await statistics() == before
    assert before[1].by_status[MessageState.SENT] == 3
    assert await retention.run_once(10) == 0


async def test_m2_retention_keeps_the_messages_of_a_mailing_that_has_not_ended(
    mailings: Mailings,
) -> None:
    claim = await cohort(mailings, await new_mailing(mailings))
    new = rows(Random(1), 10)
    await mailings.store.add_messages(claim, 0, new, remove_unfinished=False)
    await mailings.store.checkpoint(claim, pages=1, receivers=10, next_page=None, lease=1)
    await mailings.database.execute(
        "UPDATE mailings.postings SET ended_at = now() - interval '31 days'"
    )
    assert await Retention(mailings.store, timedelta(days=30)).run_once(10) == 0
    assert len(await mailings.database.fetch("SELECT FROM mailings.messages")) == 10


async def test_m6_returned_messages_are_counted_by_reason_until_they_are_published_again(
    mailings: Mailings,
) -> None:
    mailing_id = await new_mailing(mailings)
    claim = await cohort(mailings, mailing_id)
    new = rows(Random(1), 10)
    await mailings.store.add_messages(claim, 0, new, remove_unfinished=False)
    closed = ReasonCode.WINDOW_CLOSED
    await mailings.store.take_back({(claim.id, each.id): closed for each in new[1:4]})

    async def by_reason() -> dict[ReasonCode, int]:
        found: MailingStatistics = await request(
            mailings, "GetMailingStatistics", id=str(mailing_id)
        )
        assert (found.total, found.by_status[MessageState.CREATED]) == (10, 8)
        return found.by_reason

    waiting = await by_reason()
    returned = await mailings.store.returned_messages(claim, 2)
    await mailings.store.published_again(claim, returned)

    assert waiting == {"invalid_address": 2, "window_closed": 3}
    assert await by_reason() == {"invalid_address": 2, "window_closed": 1}
    await reconciled(mailings.database)


async def test_m6_overall_statistics_read_a_row_for_each_posting_of_the_caller(
    mailings: Mailings,
) -> None:
    """Count the rows that the query reads, for 1,000 mailings with a million messages.

    With ten postings for each mailing, it takes 4 ms: the fastest of 60 on a busy machine.
    """
    await mailings.database.execute(
        "INSERT INTO mailings.mailings (id, client_id, fingerprint, channel, text,"
        " template_context, start_at, end_at, operator_codes, tags, status)"
        " SELECT gen_random_uuid(), CASE WHEN n > 1000 THEN 'other' ELSE 'shop' END, '', 'sms',"
        " 'Hi', '{}', now(), now() + interval '1 day', '{}', '{}', 'finished'"
        " FROM generate_series(1, 2000) AS n"
    )
    await mailings.database.execute(
        "INSERT INTO mailings.postings (id, mailing_id, priority, sent, failed)"
        " SELECT gen_random_uuid(), id, 'bulk', 99, 1 FROM mailings.mailings,"
        " generate_series(1, 10)"
    )
    await mailings.database.execute("ANALYZE mailings.mailings, mailings.postings")
    overall = await request(mailings, "GetStatistics", "shop")
    [plan] = await mailings.database.fetch(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {SQL['overall'].replace('$1', repr('shop'))}"
    )
    read = rows_read(json.loads(plan[0])[0]["Plan"])

    assert (overall.mailings, overall.total) == (1000, 1_000_000)
    assert read.keys() == {"mailings", "postings"}
    # Two readings of mailings and one of postings, also those of the other caller if it scans.
    assert sum(read.values()) <= 2 * 2_000 + 20_000


def rows_read(plan: dict[str, Any]) -> Counter[str]:
    """Count the rows of each table that a plan has read."""
    read = Counter[str]()
    if "Relation Name" in plan:
        removed = plan.get("Rows Removed by Filter", 0)
        read[plan["Relation Name"]] += (plan["Actual Rows"] + removed) * plan["Actual Loops"]
    for part in plan.get("Plans", ()):
        read.update(rows_read(part))
    return read
