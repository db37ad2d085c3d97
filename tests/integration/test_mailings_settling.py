"""Settlement of messages, requests, and retention."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.mailings.domain import message_id
from services.mailings.retention import Retention
from services.mailings.store import SQL
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure
from shared.errors import ContractViolationError
from tests.fakes.mailing import (
    Mailings,
    UserLists,
    counts,
    empty_mailings,
    fact,
    posting,
    running_mailings,
    user,
    user_lists,
)


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


@pytest.fixture
async def setup(url: str) -> AsyncIterator[tuple[Mailings, UserLists]]:
    async with user_lists() as lists, running_mailings(url, {"auth": lists.url}) as mailings:
        lists.users["all"] = [user(number) for number in range(4)]
        yield mailings, lists


async def request(
    mailings: Mailings, operation: str, client_id: str | None = None, **body: Any
) -> Any:
    return await mailings.requests[operation](RequestContext(client_id), json.dumps(body).encode())


async def test_facts_settle_messages_and_the_last_fact_completes_the_posting(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    posting_id = await mailings.post(posting())
    await mailings.expand(posting_id)
    await mailings.settle(
        fact(posting_id, 0), fact(posting_id, 1, "failed"), fact(posting_id, 1, "failed")
    )
    partial = await mailings.status(posting_id)
    await mailings.settle(
        fact(posting_id, 2, "expired"), fact(posting_id, 3, "failed"), fact(posting_id, 3, "sent")
    )
    done = await mailings.status(posting_id)
    await mailings.settle(
        fact(posting_id, 1),
        fact(posting_id, 0, "failed"),
        fact(posting_id, 0),
        fact(posting_id, 77),
        fact(uuid4(), 0),
    )
    redriven = await mailings.status(posting_id)

    assert (partial.status, counts(partial)) == (
        "sending",
        {"created": 2, "sent": 1, "failed": 1},
    )
    assert (done.status, counts(done)) == ("done", {"sent": 2, "failed": 1, "expired": 1})
    assert (redriven.status, counts(redriven)) == ("done", {"sent": 3, "expired": 1})


async def test_a_settled_message_changes_no_index(setup: tuple[Mailings, UserLists]) -> None:
    mailings, _ = setup
    posting_id = await mailings.post(posting())
    await mailings.expand(posting_id)
    id_ = message_id(posting_id, "email", "user-0")

    async with mailings.database.transaction() as connection:
        change = ([posting_id], [id_], ["sent"], [None], [None])
        await connection.execute(SQL["settle"], *change)
        in_place = await connection.fetchval(
            "SELECT pg_stat_get_xact_tuples_hot_updated('mailings.messages'::regclass)"
        )

    assert in_place == 1


async def test_facts_that_arrive_during_expansion_are_all_counted(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(number) for number in range(400)]
    posting_id = await mailings.post(posting(receivers="http://auth/lists/all/?page_size=20"))
    settled = 0

    async def settle() -> None:
        nonlocal settled
        while settled < 400:
            published = len(mailings.broker.sent)
            await asyncio.gather(
                *(
                    mailings.settle(fact(posting_id, n), fact(posting_id, n))
                    for n in range(settled, published)
                )
            )
            settled = published
            await asyncio.sleep(0)

    status, _ = await asyncio.gather(mailings.expand(posting_id), settle())
    status = await mailings.status(posting_id)
    assert (status.status, counts(status)["sent"], counts(status)["created"]) == ("done", 400, 0)


async def test_messages_are_listed_by_page_and_status(setup: tuple[Mailings, UserLists]) -> None:
    mailings, lists = setup
    lists.users["all"][3] = user(3, email=None)
    posting_id = await mailings.post(posting())
    await mailings.expand(posting_id)
    await mailings.settle(fact(posting_id, 0, "failed"))

    first = await request(mailings, "ListPostingMessages", id=str(posting_id), limit=3)
    second = await request(
        mailings, "ListPostingMessages", id=str(posting_id), limit=3, cursor=first.next_cursor
    )
    failed = await request(mailings, "ListPostingMessages", id=str(posting_id), status="failed")
    wrong = await request(mailings, "ListPostingMessages", id=str(posting_id), cursor="7; DROP")

    items = [*first.items, *second.items]
    assert second.next_cursor is None
    assert [each.id for each in items] == sorted(each.id for each in items)
    assert {each.user_id: (each.status, each.reason) for each in items} == {
        "user-0": ("failed", "it failed"),
        "user-1": ("created", None),
        "user-2": ("created", None),
        "user-3": ("skipped", "no e-mail address"),
    }
    assert [each.user_id for each in failed.items] == ["user-0"]
    assert isinstance(wrong, Failure)
    assert [each.field for each in wrong.errors] == ["cursor"]


async def test_a_posting_of_a_client_is_visible_to_that_client_only(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    own = await request(mailings, "CreatePosting", "shop", posting=posting())
    anonymous = await request(mailings, "CreatePosting", None, posting=posting())
    visible = {
        (name, client): not isinstance(
            await request(mailings, operation, client, id=str(created.id)), Failure
        )
        for name, created in (("own", own), ("free", anonymous))
        for client in ("shop", "other", None)
        for operation in ("GetPosting", "ListPostingMessages")
    }
    assert [key for key, found in visible.items() if not found] == [("own", "other"), ("own", None)]


async def test_postings_are_listed_newest_first_by_client_and_event(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    created = [
        (await request(mailings, "CreatePosting", client, posting=posting(from_event=event))).id
        for client, event in ((None, "e-1"), ("shop", "e-1"), ("other", "e-1"), (None, "e-2"))
    ]
    first = await request(mailings, "ListPostings", "shop", limit=2)
    rest = await request(mailings, "ListPostings", "shop", limit=2, cursor=first.next_cursor)
    of_event = await request(mailings, "ListPostings", "shop", from_event="e-1")
    assert [each.id for each in (*first.items, *rest.items)] == [created[3], created[1], created[0]]
    assert rest.next_cursor is None
    assert [each.id for each in of_event.items] == [created[1], created[0]]
    for cursor in ("", "7; DROP", "1e999_" + str(created[0]), f"nan_{created[0]}"):
        wrong = await request(mailings, "ListPostings", "shop", cursor=cursor)
        assert [each.field for each in wrong.errors] == ["cursor"]


async def test_a_request_repeated_with_its_idempotency_key_changes_nothing(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    key = {"idempotency_key": "k-1"}
    first = await request(mailings, "CreatePosting", "shop", posting=posting(), **key)
    await mailings.expand_all()
    repeated = await request(mailings, "CreatePosting", "shop", posting=posting(), **key)
    other = await request(mailings, "CreatePosting", "shop", posting=posting(from_event="x"), **key)
    other_client = await request(mailings, "CreatePosting", "blog", posting=posting(), **key)
    wrong = await request(
        mailings, "CreatePosting", "shop", posting=posting(delivery_type=["pigeon"])
    )

    assert (first.status, repeated.status) == ("accepted", "sending")
    assert first.id == repeated.id != other_client.id
    assert (other.code, wrong.code) == ("conflict", "invalid")
    assert wrong.errors[0].field.startswith("delivery_type")
    assert len(mailings.broker.sent) == 4


async def test_a_repeated_posting_changes_nothing_and_a_different_one_with_its_id_is_rejected(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    posting_id = await mailings.post(posting())
    await asyncio.gather(*(mailings.post(posting(), id=posting_id) for _ in range(3)))
    with pytest.raises(ContractViolationError, match="different posting"):
        await mailings.post(posting(from_event="other"), id=posting_id)
    await mailings.expand(posting_id)
    assert len(mailings.broker.sent) == 4


async def test_the_context_of_an_ended_posting_is_deleted(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    body = posting(
        delivery_type=["sms"],
        template="sms/phone_confirmation.md",
        template_context={"secret_code": "canary-7"},
    )
    await mailings.expand(await mailings.post(body))
    rows = await mailings.database.fetch(
        "SELECT p::text, m::text FROM mailings.postings p, mailings.messages m"
    )
    assert rows
    assert not any("canary-7" in text or "7900" in text for row in rows for text in row)
    assert "canary-7" in mailings.broker.sent[0].body.decode()


async def test_retention_deletes_old_postings_with_their_messages(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    old, recent = await mailings.post(posting()), await mailings.post(posting())
    await mailings.expand(old)
    await mailings.expand(recent)
    running = await mailings.post(posting())
    await mailings.database.execute(
        "UPDATE mailings.postings SET ended_at = now() - interval '31 days' WHERE id = $1", old
    )
    assert await Retention(mailings.store, timedelta(days=30)).run_once(10) == 1
    assert [await mailings.store.status(each, None) is None for each in (old, recent, running)] == [
        *(True, False, False)
    ]
    left = await mailings.database.fetchrow("SELECT count(*) FROM mailings.messages")
    assert left["count"] == 4


async def test_finding_c1_retention_leaves_a_posting_that_another_process_is_deleting(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    old = await mailings.post(posting())
    await mailings.expand(old)
    await mailings.database.execute(
        "UPDATE mailings.postings SET ended_at = now() - interval '31 days' WHERE id = $1", old
    )
    retention = Retention(mailings.store, timedelta(days=30))
    async with mailings.database.transaction() as other:
        await other.fetch(
            "SELECT FROM mailings.messages WHERE posting_id = $1 LIMIT 1 FOR UPDATE", old
        )
        async with asyncio.timeout(20):
            await retention.run_once(10)
        assert await mailings.store.status(old, None) is not None
    await retention.run_once(10)
    assert await mailings.store.status(old, None) is None


async def test_finding_a3_a_request_that_is_delivered_again_finds_its_own_posting(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup

    async def deliver(message_id: str) -> Any:
        context = RequestContext("shop", None, message_id)
        body = json.dumps({"posting": posting()}).encode()
        return await mailings.requests["CreatePosting"](context, body)

    first = await deliver("m-1")
    assert (await deliver("m-1")).id == first.id
    assert (await deliver("m-2")).id != first.id
