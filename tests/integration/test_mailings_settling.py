"""Settlement of messages, requests, and retention."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.mailings.retention import Retention
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
async def around(url: str) -> AsyncIterator[tuple[Mailings, UserLists]]:
    async with user_lists() as users, running_mailings(url, {"auth": users.url}) as it:
        users.users["all"] = [user(number) for number in range(4)]
        yield it, users


async def request(it: Mailings, operation: str, client_id: str | None = None, **body: Any) -> Any:
    return await it.requests[operation](RequestContext(client_id), json.dumps(body).encode())


async def test_facts_settle_messages_and_the_last_fact_completes_the_posting(
    around: tuple[Mailings, UserLists],
) -> None:
    it, _ = around
    id_ = await it.post(posting())
    await it.expand(id_)
    await it.settle(fact(id_, 0), fact(id_, 1, "failed"), fact(id_, 1, "failed"))
    some = await it.status(id_)
    await it.settle(fact(id_, 2, "expired"), fact(id_, 3, "failed"), fact(id_, 3, "sent"))
    done = await it.status(id_)
    await it.settle(
        fact(id_, 1), fact(id_, 0, "failed"), fact(id_, 0), fact(id_, 77), fact(uuid4(), 0)
    )
    redriven = await it.status(id_)

    assert (some.status, counts(some)) == (
        "sending",
        {"created": 2, "sent": 1, "failed": 1},
    )
    assert (done.status, counts(done)) == ("done", {"sent": 2, "failed": 1, "expired": 1})
    assert (redriven.status, counts(redriven)) == ("done", {"sent": 3, "expired": 1})


async def test_facts_that_arrive_during_expansion_are_all_counted(
    around: tuple[Mailings, UserLists],
) -> None:
    it, users = around
    users.users["all"] = [user(number) for number in range(400)]
    id_ = await it.post(posting(receivers="http://auth/lists/all/?page_size=20"))
    settled = 0

    async def settle() -> None:
        nonlocal settled
        while settled < 400:
            published = len(it.broker.sent)
            await asyncio.gather(
                *(it.settle(fact(id_, n), fact(id_, n)) for n in range(settled, published))
            )
            settled = published
            await asyncio.sleep(0)

    status, _ = await asyncio.gather(it.expand(id_), settle())
    status = await it.status(id_)
    assert (status.status, counts(status)["sent"], counts(status)["created"]) == ("done", 400, 0)


async def test_messages_are_listed_by_page_and_status(around: tuple[Mailings, UserLists]) -> None:
    it, users = around
    users.users["all"][3] = user(3, email=None)
    id_ = await it.post(posting())
    await it.expand(id_)
    await it.settle(fact(id_, 0, "failed"))

    first = await request(it, "ListPostingMessages", id=str(id_), limit=3)
    second = await request(
        it, "ListPostingMessages", id=str(id_), limit=3, cursor=first.next_cursor
    )
    failed = await request(it, "ListPostingMessages", id=str(id_), status="failed")
    wrong = await request(it, "ListPostingMessages", id=str(id_), cursor="7; DROP")

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
    around: tuple[Mailings, UserLists],
) -> None:
    it, _ = around
    own = await request(it, "CreatePosting", "shop", posting=posting())
    free = await request(it, "CreatePosting", None, posting=posting())
    seen = {
        (name, client): not isinstance(
            await request(it, operation, client, id=str(made.id)), Failure
        )
        for name, made in (("own", own), ("free", free))
        for client in ("shop", "other", None)
        for operation in ("GetPosting", "ListPostingMessages")
    }
    assert [key for key, found in seen.items() if not found] == [("own", "other"), ("own", None)]


async def test_postings_are_listed_newest_first_by_client_and_event(
    around: tuple[Mailings, UserLists],
) -> None:
    it, _ = around
    made = [
        (await request(it, "CreatePosting", client, posting=posting(from_event=event))).id
        for client, event in ((None, "e-1"), ("shop", "e-1"), ("other", "e-1"), (None, "e-2"))
    ]
    first = await request(it, "ListPostings", "shop", limit=2)
    rest = await request(it, "ListPostings", "shop", limit=2, cursor=first.next_cursor)
    of_event = await request(it, "ListPostings", "shop", from_event="e-1")
    assert [each.id for each in (*first.items, *rest.items)] == [made[3], made[1], made[0]]
    assert rest.next_cursor is None
    assert [each.id for each in of_event.items] == [made[1], made[0]]
    for cursor in ("", "7; DROP", "1e999_" + str(made[0]), f"nan_{made[0]}"):
        wrong = await request(it, "ListPostings", "shop", cursor=cursor)
        assert [each.field for each in wrong.errors] == ["cursor"]


async def test_a_request_repeated_with_its_idempotency_key_changes_nothing(
    around: tuple[Mailings, UserLists],
) -> None:
    it, _ = around
    key = {"idempotency_key": "k-1"}
    first = await request(it, "CreatePosting", "shop", posting=posting(), **key)
    await it.expand_all()
    again = await request(it, "CreatePosting", "shop", posting=posting(), **key)
    other = await request(it, "CreatePosting", "shop", posting=posting(from_event="x"), **key)
    elsewhere = await request(it, "CreatePosting", "blog", posting=posting(), **key)
    wrong = await request(it, "CreatePosting", "shop", posting=posting(delivery_type=["pigeon"]))

    assert (first.status, again.status) == ("accepted", "sending")
    assert first.id == again.id != elsewhere.id
    assert (other.code, wrong.code) == ("conflict", "invalid")
    assert wrong.errors[0].field.startswith("delivery_type")
    assert len(it.broker.sent) == 4


async def test_a_repeated_posting_changes_nothing_and_a_different_one_with_its_id_is_rejected(
    around: tuple[Mailings, UserLists],
) -> None:
    it, _ = around
    id_ = await it.post(posting())
    await asyncio.gather(*(it.post(posting(), id=id_) for _ in range(3)))
    with pytest.raises(ContractViolationError, match="different posting"):
        await it.post(posting(from_event="other"), id=id_)
    await it.expand(id_)
    assert len(it.broker.sent) == 4


async def test_the_context_of_an_ended_posting_is_deleted(
    around: tuple[Mailings, UserLists],
) -> None:
    it, _ = around
    body = posting(
        delivery_type=["sms"],
        template="sms/phone_confirmation.md",
        template_context={"secret_code": "canary-7"},
    )
    await it.expand(await it.post(body))
    rows = await it.database.fetch(
        "SELECT p::text, m::text FROM mailings.postings p, mailings.messages m"
    )
    assert rows
    assert not any("canary-7" in text or "7900" in text for row in rows for text in row)
    assert "canary-7" in it.broker.sent[0].body.decode()


async def test_retention_deletes_old_postings_with_their_messages(
    around: tuple[Mailings, UserLists],
) -> None:
    it, _ = around
    old, young = await it.post(posting()), await it.post(posting())
    await it.expand(old)
    await it.expand(young)
    running = await it.post(posting())
    await it.database.execute(
        "UPDATE mailings.postings SET ended_at = now() - interval '31 days' WHERE id = $1", old
    )
    assert await Retention(it.store, timedelta(days=30)).run_once(10) == 1
    assert [await it.store.status(each, None) is None for each in (old, young, running)] == [
        *(True, False, False)
    ]
    left = await it.database.fetchrow("SELECT count(*) FROM mailings.messages")
    assert left["count"] == 4
