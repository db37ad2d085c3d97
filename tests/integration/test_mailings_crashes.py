"""E7: interrupted at any point, expansion continues at its checkpoint and skips no recipient."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import UUID

import pytest

from services.mailings.domain import message_id
from services.mailings.expansion import slice as slice_module
from services.mailings.records import Claim, LeaseLostError, MessageRow
from services.mailings.store import Store
from shared.amqp.publisher import OutgoingMessage
from shared.contracts.posting_requests import MessageState
from shared.postgres.pool import StoreConnectionLostError
from tests.fakes.mailing import (
    FakeBroker,
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
from tests.fakes.waiting import until

PAGES = "http://auth/lists/all/?page_size=10"


class FailingStore(Store):
    """Loses the database at one point of the second page."""

    failing_point = ""

    def _fail(self, point: str, page: int) -> None:
        if point == self.failing_point and page == 1:
            raise StoreConnectionLostError("the connection is lost")

    async def add_messages(
        self, claim: Claim, page: int, rows: Sequence[MessageRow], **options: Any
    ) -> Any:
        self._fail("before the messages are added", page)
        new = await super().add_messages(claim, page, rows, **options)
        self._fail("before publishing", page)
        return new

    async def checkpoint(self, claim: Claim, *, pages: int, **options: Any) -> Any:
        self._fail("before the checkpoint", pages - 1)
        counted = await super().checkpoint(claim, pages=pages, **options)
        self._fail("after the checkpoint", pages - 1)
        return counted


class UnreportedStore(Store):
    """Loses the database after the last checkpoint, before the slice has its result."""

    async def checkpoint(self, claim: Claim, *, next_page: str | None, **options: Any) -> Any:
        counted = await super().checkpoint(claim, next_page=next_page, **options)
        if next_page is None:
            raise StoreConnectionLostError("the connection is lost")
        return counted


POINTS = {
    "before the messages are added": 0,
    "before publishing": 0,
    "before the checkpoint": 10,
    "after the checkpoint": 0,
}


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


@pytest.fixture
async def lists() -> AsyncIterator[UserLists]:
    async with user_lists() as server:
        server.users["all"] = [user(number) for number in range(35)]
        yield server


@pytest.mark.parametrize("point", POINTS)
async def test_e7_an_interruption_repeats_at_most_one_page_and_skips_no_recipient(
    url: str, lists: UserLists, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = FakeBroker()
    async with running_mailings(
        url, {"auth": lists.url}, broker=broker, store=FailingStore
    ) as first:
        posting_id = await first.post(posting(receivers=PAGES, delivery_type=["email"]))
        monkeypatch.setattr(FailingStore, "failing_point", point)
        await first.expansion.run_once(1)
    async with running_mailings(url, {"auth": lists.url}, broker=broker) as second:
        assert await second.expansion.run_once(1) == 0, (
            "the lease of the first process has not expired"
        )
        await second.make_due(posting_id)
        status = await second.expand(posting_id)

    ids = broker.ids(posting_id)
    assert len(ids) == 35
    assert sum(ids.values()) - 35 == POINTS[point]
    assert (status.status, status.pages, status.receivers) == ("sending", 4, 35)
    assert counts(status)["created"] == 35


async def test_e7_an_interruption_after_the_last_checkpoint_does_not_fail_the_posting(
    url: str, lists: UserLists
) -> None:
    broker = FakeBroker()
    async with running_mailings(
        url, {"auth": lists.url}, broker=broker, store=UnreportedStore
    ) as first:
        posting_id = await first.post(posting(receivers=PAGES))
        await first.expansion.run_once(1)
    fetched = len(lists.requests)
    async with running_mailings(url, {"auth": lists.url}, broker=broker) as second:
        await second.make_due(posting_id)
        status = await second.expand(posting_id)
    assert (status.status, status.reason) == ("sending", None)
    assert (status.pages, status.receivers, counts(status)["created"]) == (4, 35, 35)
    assert len(lists.requests) == fetched, "the list is not read again"


async def test_e7_a_message_settled_before_the_repeat_is_not_sent_again(
    url: str, lists: UserLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = FakeBroker()
    monkeypatch.setattr(FailingStore, "failing_point", "before the checkpoint")
    async with running_mailings(
        url, {"auth": lists.url}, broker=broker, store=FailingStore
    ) as first:
        posting_id = await first.post(posting(receivers=PAGES))
        await first.expansion.run_once(1)
        await first.settle(*(fact(posting_id, number) for number in range(8, 18)))
        # The rest of the second page is repeated. A user who left the list gets nothing more.
        lists.users["all"][18:20] = [user(98), user(18)]
    async with running_mailings(url, {"auth": lists.url}, broker=broker) as second:
        await second.make_due(posting_id)
        status = await second.expand(posting_id)
        skipped = await second.store.messages(posting_id, UUID(int=0), None, 1000)

    ids = broker.ids(posting_id)
    assert len(ids) == 36
    assert sum(ids.values()) == 37, "only the message to user-18 is published twice"
    assert counts(status)["sent"] == 10
    assert sum(status.messages.values()) == len(skipped) == 35


async def test_e7_a_fully_settled_page_does_not_look_like_an_endless_list(
    url: str, lists: UserLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = FakeBroker()
    monkeypatch.setattr(FailingStore, "failing_point", "before the checkpoint")
    async with running_mailings(
        url, {"auth": lists.url}, broker=broker, store=FailingStore
    ) as first:
        posting_id = await first.post(posting(receivers=PAGES))
        await first.expansion.run_once(1)
        await first.settle(*(fact(posting_id, number) for number in range(20)))
    async with running_mailings(url, {"auth": lists.url}, broker=broker) as second:
        await second.make_due(posting_id)
        status = await second.expand(posting_id)
    assert (status.status, counts(status)["sent"]) == ("sending", 20)
    assert sum(broker.ids(posting_id).values()) == 35


class Gated(FakeBroker):
    """Confirms nothing until `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        super().publish(message)
        return asyncio.ensure_future(self._confirm())

    async def _confirm(self) -> None:
        await self.open.wait()


async def test_row_18_a_slice_with_a_lost_lease_changes_nothing(url: str, lists: UserLists) -> None:
    gated, broker = Gated(), FakeBroker()
    sources = {"auth": lists.url}
    async with (
        running_mailings(url, sources, broker=gated) as stale,
        running_mailings(url, sources, broker=broker) as other,
    ):
        posting_id = await stale.post(posting(receivers=PAGES))
        suspended = asyncio.create_task(stale.expansion.run_once(1))
        await until(lambda: len(gated.sent) == 10)
        await other.make_due(posting_id)
        done = await other.expand(posting_id)
        gated.open.set()
        await suspended
        assert await other.status(posting_id) == done
    assert (done.receivers, counts(done)["created"]) == (35, 35)
    assert len(gated.sent) == 10, "no further page is published"
    assert sorted(broker.ids(posting_id).values()) == [1] * 35


async def test_row_18_a_slice_with_a_lost_lease_sets_no_checkpoint(
    url: str, lists: UserLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated, broker = Gated(), FakeBroker()
    sources = {"auth": lists.url}
    async with (
        running_mailings(url, sources, broker=gated) as stale,
        running_mailings(url, sources, broker=broker) as other,
    ):
        posting_id = await stale.post(posting(receivers=PAGES))
        suspended = asyncio.create_task(stale.expansion.run_once(1))

        async def second_page_is_added() -> bool:
            return counts(await stale.status(posting_id)).get("created") == 20

        await until(second_page_is_added)
        monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)
        await other.make_due(posting_id)
        await other.expansion.run_once(1)
        before = await other.status(posting_id)
        gated.open.set()
        await suspended
        assert await other.status(posting_id) == before
        status = await other.expand(posting_id)
    assert (before.pages, before.receivers) == (1, 10)
    assert (status.receivers, counts(status)) == (35, {"created": 35})


async def test_row_18_a_lost_lease_is_noticed_beside_the_newer_one_of_the_same_process(
    url: str,
) -> None:
    async with running_mailings(url, {}) as mailings:
        posting_id = await mailings.post(posting())
        store = mailings.store
        [stale] = await store.claim(1, 0, lease=15)
        await mailings.make_due(posting_id)
        [newer] = await store.claim(1, 0, lease=15)
        claims = (stale, newer)
        rows = [
            MessageRow(message_id(posting_id, "email", name), name, "email", *[None] * 4)
            for name in ("user-1", "user-2")
        ]
        added = await asyncio.gather(
            *(
                store.add_messages(claim, 0, [row], remove_unfinished=False)
                for claim, row in zip(claims, rows, strict=True)
            ),
            return_exceptions=True,
        )
        checkpoints = await asyncio.gather(
            *(
                store.checkpoint(claim, pages=pages, receivers=1, next_page="x", lease=15)
                for claim, pages in zip(claims, (7, 1), strict=True)
            ),
            return_exceptions=True,
        )
        status = await mailings.status(posting_id)
    assert isinstance(added[0], LeaseLostError)
    assert added[1] == {rows[1].id: MessageState.CREATED}
    assert isinstance(checkpoints[0], LeaseLostError)
    assert (status.pages, status.receivers, counts(status)) == (1, 1, {"created": 1})


async def test_row_18_a_slice_that_resumes_after_its_lease_expired_writes_nothing(
    url: str, lists: UserLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale_broker, broker = FakeBroker(), FakeBroker()
    sources = {"auth": lists.url}
    resumed = asyncio.Event()

    async def second_page() -> list[dict[str, Any]]:
        if lists.requests.count(("all", 2)) > 1:
            return lists.users["all"][10:20]
        await resumed.wait()
        return [user(number) for number in range(100, 110)]

    lists.responses["all", 2] = second_page
    async with (
        running_mailings(url, sources, broker=stale_broker) as stale,
        running_mailings(url, sources, broker=broker) as other,
    ):
        posting_id = await stale.post(posting(receivers=PAGES))
        suspended = asyncio.create_task(stale.expansion.run_once(1))
        await until(lambda: ("all", 2) in lists.requests and len(stale_broker.sent) == 10)
        await until(lambda: _pages(stale, posting_id, 1))
        monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)
        await other.make_due(posting_id)
        await other.expansion.run_once(1)
        resumed.set()
        await suspended
        status = await other.expand(posting_id)
    assert len(stale_broker.sent) == 10, "the first page only"
    assert (status.receivers, counts(status)) == (35, {"created": 35})
    assert len(broker.ids(posting_id)) == 25


async def _pages(mailings: Mailings, posting_id: UUID, pages: int) -> bool:
    return (await mailings.status(posting_id)).pages == pages


async def test_a_long_slice_renews_its_lease(
    url: str, lists: UserLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (
        "services.mailings.expansion.worker.LEASE",
        "services.mailings.expansion.slice.LEASE",
    ):
        monkeypatch.setattr(module, 0.6)
    gated = Gated()
    async with running_mailings(url, {"auth": lists.url}, broker=gated) as mailings:
        posting_id = await mailings.post(posting(receivers=PAGES))
        slow = asyncio.create_task(mailings.expand(posting_id))
        await until(lambda: len(gated.sent) == 10)
        for _ in range(12):
            await asyncio.sleep(0.1)  # twice the lease
            assert await mailings.expansion.run_once(1) == 0
        gated.open.set()
        status = await slow
    assert (status.status, sum(gated.ids(posting_id).values())) == ("sending", 35)


async def test_two_processes_share_postings_and_repeat_nothing(
    url: str, lists: UserLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)
    lists.users["all"] = [user(number) for number in range(95)]
    broker = FakeBroker()
    sources = {"auth": lists.url}
    async with (
        running_mailings(url, sources, broker=broker) as one,
        running_mailings(url, sources, broker=broker) as two,
    ):
        ids = [await one.post(posting(receivers=PAGES)) for _ in range(6)]
        claimed: list[int] = []

        async def work(run_once: Callable[[int], Any]) -> None:
            while count := await run_once(1):
                claimed.append(count)

        await asyncio.gather(
            *(work(mailings.expansion.run_once) for mailings in (one, two, one, two))
        )
        statuses = [await one.status(posting_id) for posting_id in ids]
    assert {(each.status, each.receivers) for each in statuses} == {("sending", 95)}
    assert [set(broker.ids(posting_id).values()) for posting_id in ids] == [{1}] * 6
    assert sum(claimed) == 60


async def test_row_32_a_slice_ends_with_its_page_when_the_process_drains(
    url: str, lists: UserLists
) -> None:
    lists.users["all"] = [user(number) for number in range(500)]
    broker = FakeBroker()
    async with running_mailings(url, {"auth": lists.url}, broker=broker) as mailings:
        posting_id = await mailings.post(posting(receivers=PAGES))
        running = asyncio.create_task(mailings.expansion.run_once(1))
        await until(lambda: broker.sent)
        await mailings.expansion.drain(5.0)
        await running
        assert await mailings.expansion.run_once(1) == 0
    async with running_mailings(url, {"auth": lists.url}, broker=broker) as second:
        before = await second.status(posting_id)
        assert before.status == "expanding"
        status = await second.expand(posting_id)
    assert status.receivers == 500
    assert set(broker.ids(posting_id).values()) == {1}
