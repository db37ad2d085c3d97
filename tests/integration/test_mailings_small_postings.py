"""Postings to one recipient: many are expanded at a time, next to lists."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from services.mailings.expansion import slice as slice_module
from services.mailings.expansion.sources import MAX_SMALL_FETCHES
from services.mailings.records import Claim
from services.mailings.store import Store
from shared.postgres.pool import Database, StoreConnectionLostError
from shared.registry import BULK
from tests.fakes.mailing import (
    FakeBroker,
    Mailings,
    UserLists,
    counts,
    empty_mailings,
    posting,
    running_mailings,
    user,
    user_lists,
)
from tests.fakes.waiting import until

POSTINGS = 100


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


@pytest.fixture
async def lists() -> AsyncIterator[UserLists]:
    async with user_lists() as server:
        for number in range(POSTINGS):
            server.responses[f"user-{number}", 0] = lambda number=number: user(number)  # type: ignore[misc]
        yield server


async def post_to_one(mailings: Mailings, number: int, **fields: Any) -> UUID:
    return await mailings.post(posting(receivers=f"http://auth/lists/user-{number}/", **fields))


@asynccontextmanager
async def expanding(mailings: Mailings) -> AsyncIterator[None]:
    """Run the expansion as the service does."""
    running = asyncio.create_task(mailings.expansion.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_finding_c19_postings_to_one_recipient_share_their_transactions(
    url: str, lists: UserLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_mailings(url, {"auth": lists.url}) as mailings:
        ids = [await post_to_one(mailings, number) for number in range(POSTINGS)]
        uses = 0
        acquire = Database._acquire  # noqa: SLF001 - every statement and transaction needs one

        async def counted(self: Database, **options: Any) -> Any:
            nonlocal uses
            uses += 1
            return await acquire(self, **options)

        monkeypatch.setattr(Database, "_acquire", counted)
        assert await mailings.expansion.run_once(POSTINGS) == POSTINGS
        assert uses < POSTINGS, "about eleven for each posting before"
        statuses = [await mailings.status(each) for each in ids]
    assert {(each.status, each.pages, each.receivers) for each in statuses} == {("sending", 1, 1)}
    assert {counts(each)["created"] for each in statuses} == {1}
    assert [set(mailings.broker.ids(each).values()) for each in ids] == [{1}] * POSTINGS


async def test_finding_c19_many_users_are_fetched_at_a_time(url: str, lists: UserLists) -> None:
    arrived = asyncio.Semaphore(0)
    enough = asyncio.Event()

    async def response() -> dict[str, Any]:
        arrived.release()
        await enough.wait()
        return user(1)

    lists.responses["slow", 0] = response
    async with running_mailings(url, {"auth": lists.url}) as mailings:
        slow = posting(receivers="http://auth/lists/slow/")
        ids = [await mailings.post(slow) for _ in range(MAX_SMALL_FETCHES + 5)]
        async with expanding(mailings):
            for _ in range(MAX_SMALL_FETCHES):
                await asyncio.wait_for(arrived.acquire(), 30)
            assert len(lists.requests) == MAX_SMALL_FETCHES, "the limit for one host"
            enough.set()
            await until(lambda: len(mailings.broker.sent) == len(ids))


class FailingStore(Store):
    """Loses the database at one point of a batch of postings."""

    failing_point = ""

    def _fail(self, point: str) -> None:
        if point == self.failing_point:
            raise StoreConnectionLostError("the connection is lost")

    async def add_messages(self, claim: Claim, page: int, rows: Any, **options: Any) -> Any:
        self._fail("before the messages are added")
        new = await super().add_messages(claim, page, rows, **options)
        self._fail("before publishing")
        return new

    async def checkpoint(self, claim: Claim, **options: Any) -> dict[str, int]:
        self._fail("before the checkpoint")
        counted = await super().checkpoint(claim, **options)
        self._fail("after the checkpoint")
        return counted


POINTS = {
    "before the messages are added": 0,
    "before publishing": 0,
    "before the checkpoint": 1,
    "after the checkpoint": 0,
}


@pytest.mark.parametrize("point", POINTS)
async def test_e7_an_interrupted_batch_repeats_each_message_at_most_once_and_skips_none(
    url: str, lists: UserLists, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingStore, "failing_point", point)
    broker = FakeBroker()
    sources = {"auth": lists.url}
    async with running_mailings(url, sources, broker=broker, store=FailingStore) as first:
        ids = [await post_to_one(first, number) for number in range(20)]
        assert await first.expansion.run_once(20) == 20
    async with running_mailings(url, sources, broker=broker) as second:
        for each in ids:
            await second.make_due(each)
        await second.expansion.run_once(20)
        statuses = [await second.status(each) for each in ids]
    assert {each.status for each in statuses} == {"sending"}
    assert {counts(each)["created"] for each in statuses} == {1}
    repeats = POINTS[point]
    assert [list(broker.ids(each).values()) for each in ids] == [[1 + repeats]] * 20


async def test_finding_c19_a_lost_lease_fails_only_its_own_posting(
    url: str, lists: UserLists
) -> None:
    broker, other_broker = FakeBroker(), FakeBroker()
    resumed = asyncio.Event()

    async def response() -> dict[str, Any]:
        await resumed.wait()
        return user(1)

    lists.responses["user-1", 0] = response
    sources = {"auth": lists.url}
    async with (
        running_mailings(url, sources, broker=broker) as stale,
        running_mailings(url, sources, broker=other_broker) as other,
    ):
        ids = [await post_to_one(stale, number) for number in range(3)]
        suspended = asyncio.create_task(stale.expansion.run_once(3))
        await until(lambda: len(lists.requests) == 3)
        lists.responses["user-1", 0] = lambda: user(1)
        await other.make_due(ids[1])
        assert await other.expansion.run_once(3) == 1
        resumed.set()
        await suspended
        statuses = [await other.status(each) for each in ids]
    assert {each.status for each in statuses} == {"sending"}
    assert [broker.ids(each).total() for each in ids] == [1, 0, 1]
    assert other_broker.ids(ids[1]).total() == 1


async def test_finding_c19_lists_leave_slots_to_postings_to_one_recipient(
    url: str, lists: UserLists
) -> None:
    """One list hangs in the only slot for lists. The others wait, and single users do not."""
    ended = asyncio.Event()

    async def second_page() -> list[Any]:
        await ended.wait()
        return []

    lists.users |= {name: [user(number) for number in range(10)] for name in ("a", "b")}
    lists.users["large"] = [user(number) for number in range(200)]
    lists.responses["a", 2] = lists.responses["b", 2] = second_page
    sent = FakeBroker.ids
    async with running_mailings(url, {"auth": lists.url}, concurrency=1) as mailings:

        async def post_to_list(name: str, size: int) -> UUID:
            receivers = f"http://auth/lists/{name}/?page_size={size}"
            return await mailings.post(posting(receivers=receivers))

        async with expanding(mailings):
            hanging = await post_to_list("a", 10)
            await until(lambda: ("a", 2) in lists.requests)
            second, large = await post_to_list("b", 10), await post_to_list("large", 500)
            single = [await post_to_one(mailings, number) for number in range(20)]
            await until(lambda: all(sent(mailings.broker, each) for each in single))
            assert ("b", 2) not in lists.requests
            assert not sent(mailings.broker, large)
            ended.set()
            await until(lambda: len(mailings.broker.sent) == 20 + 220)
    assert [sent(mailings.broker, each).total() for each in (hanging, second, large)] == [
        *(10, 10, 200)
    ]


class SlowStore(Store):
    """Claims a list, and returns it only when `returned` is set."""

    claimed: asyncio.Event
    returned: asyncio.Event

    async def claim(self, *slots: int, **options: Any) -> list[Claim]:
        claims = await super().claim(*slots, **options)
        if any(claim.is_list for claim in claims):
            self.claimed.set()
            await self.returned.wait()
        return claims


async def test_finding_c19_a_posting_becomes_a_list_while_another_list_is_claimed(
    url: str, lists: UserLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both use the only slot for lists. Other postings are still expanded."""
    continued, ended = asyncio.Event(), asyncio.Event()

    async def hang(event: asyncio.Event, users: list[Any]) -> list[Any]:
        await event.wait()
        return users

    monkeypatch.setattr(slice_module, "SLICE_DURATION", 60.0)
    full = [user(number) for number in range(10)]
    lists.responses["a", 1] = lambda: hang(continued, full)
    lists.responses["a", 2] = lists.responses["b", 1] = lambda: hang(ended, [])
    for name in ("claimed", "returned"):
        monkeypatch.setattr(SlowStore, name, asyncio.Event(), raising=False)
    receivers = "http://auth/lists/{}/?page_size=10"
    async with running_mailings(
        url, {"auth": lists.url}, store=SlowStore, concurrency=1
    ) as mailings:
        known = await mailings.post(posting(receivers=receivers.format("b")))
        await mailings.database.execute(
            "UPDATE mailings.postings SET is_list = true, due_at = now() + interval '1 hour'"
        )
        async with expanding(mailings):
            await mailings.post(posting(receivers=receivers.format("a")))
            await until(lambda: ("a", 1) in lists.requests)
            await mailings.make_due(known)
            mailings.expansion.wake({BULK})
            await SlowStore.claimed.wait()
            continued.set()
            await until(lambda: ("a", 2) in lists.requests)
            SlowStore.returned.set()
            await until(lambda: ("b", 1) in lists.requests)
            single = await post_to_one(mailings, 1)
            await until(lambda: bool(mailings.broker.ids(single)))
            ended.set()
