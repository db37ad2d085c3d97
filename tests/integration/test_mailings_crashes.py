"""E7: stopped at any point, a posting goes on after its last checkpoint; nobody is left out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import UUID

import pytest

from services.mailings.expansion import slice as turn
from services.mailings.store import Claim, Row, Store
from shared.amqp.publisher import OutgoingMessage
from shared.postgres.pool import StoreConnectionLostError
from tests.fakes.mailing import (
    Lists,
    Mailings,
    Queues,
    counts,
    emptied,
    fact,
    lists,
    mailings,
    posting,
    user,
)
from tests.fakes.waiting import until

PAGES = "http://auth/lists/all/?page_size=10"


class Dying(Store):
    """Loses the database at one point, in the turn's second page; what was done before, is done."""

    at = ""

    def _die(self, point: str, page: int) -> None:
        if point == self.at and page == 1:
            raise StoreConnectionLostError("died here")

    async def put(self, claim: Claim, page: int, rows: Sequence[Row], **how: Any) -> Any:
        self._die("before it is written", page)
        fresh = await super().put(claim, page, rows, **how)
        self._die("between writing and publishing", page)
        return fresh

    async def checkpoint(self, claim: Claim, *, pages: int, **how: Any) -> None:
        self._die("between publishing and checkpoint", pages - 1)
        await super().checkpoint(claim, pages=pages, **how)
        self._die("after the checkpoint", pages - 1)


POINTS = {
    "before it is written": 0,
    "between writing and publishing": 0,
    "between publishing and checkpoint": 10,
    "after the checkpoint": 0,
}


@pytest.fixture
async def url(database_url: str) -> str:
    return await emptied(database_url)


@pytest.fixture
async def users() -> AsyncIterator[Lists]:
    async with lists() as it:
        it.people["all"] = [user(number) for number in range(35)]
        yield it


@pytest.mark.parametrize("point", POINTS)
async def test_e7_stopped_anywhere_at_most_a_page_is_repeated_and_nobody_left_out(
    url: str, users: Lists, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = Queues()
    async with mailings(url, {"auth": users.url}, queues=queues, store=Dying) as first:
        id_ = await first.post(posting(receivers=PAGES, delivery_type=["email"]))
        monkeypatch.setattr(Dying, "at", point)
        await first.expansion.run_once(1)
    async with mailings(url, {"auth": users.url}, queues=queues) as second:
        assert await second.expansion.run_once(1) == 0, "it is still the first one's"
        await second.due(id_)
        status = await second.expand(id_)

    ids = queues.ids(id_)
    assert len(ids) == 35
    assert sum(ids.values()) - 35 == POINTS[point]
    assert (status.status, status.pages, status.receivers) == ("sending", 4, 35)
    assert counts(status)["created"] == 35


async def test_e7_what_was_settled_meanwhile_is_not_sent_again(
    url: str, users: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = Queues()
    monkeypatch.setattr(Dying, "at", "between publishing and checkpoint")
    async with mailings(url, {"auth": users.url}, queues=queues, store=Dying) as first:
        id_ = await first.post(posting(receivers=PAGES))
        await first.expansion.run_once(1)
        await first.tell(*(fact(id_, number) for number in range(8, 18)))
        # All of the second page that is not settled yet; and who is gone, gets nothing more.
        users.people["all"][18:20] = [user(98), user(18)]
    async with mailings(url, {"auth": users.url}, queues=queues) as second:
        await second.due(id_)
        status = await second.expand(id_)
        skipped = await second.store.messages(id_, id_.__class__(int=0), None, 1000)

    ids = queues.ids(id_)
    assert len(ids) == 36
    assert sum(ids.values()) == 37, "only user-18 was given out twice"
    assert counts(status)["sent"] == 10
    assert sum(status.messages.values()) == len(skipped) == 35


async def test_e7_a_whole_page_that_was_settled_meanwhile_is_no_list_without_end(
    url: str, users: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = Queues()
    monkeypatch.setattr(Dying, "at", "between publishing and checkpoint")
    async with mailings(url, {"auth": users.url}, queues=queues, store=Dying) as first:
        id_ = await first.post(posting(receivers=PAGES))
        await first.expansion.run_once(1)
        await first.tell(*(fact(id_, number) for number in range(20)))
    async with mailings(url, {"auth": users.url}, queues=queues) as second:
        await second.due(id_)
        status = await second.expand(id_)
    assert (status.status, counts(status)["sent"]) == ("sending", 20)
    assert sum(queues.ids(id_).values()) == 35


class Gated(Queues):
    """Confirms nothing while `open` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        super().publish(message)
        return asyncio.ensure_future(self._confirm())

    async def _confirm(self) -> None:
        await self.open.wait()


async def test_row_18_a_turn_whose_lease_was_lost_changes_nothing(url: str, users: Lists) -> None:
    gated, queues = Gated(), Queues()
    sources = {"auth": users.url}
    async with (
        mailings(url, sources, queues=gated) as stale,
        mailings(url, sources, queues=queues) as other,
    ):
        id_ = await stale.post(posting(receivers=PAGES))
        suspended = asyncio.create_task(stale.expansion.run_once(1))
        await until(lambda: len(gated.sent) == 10)
        await other.due(id_)
        done = await other.expand(id_)
        gated.open.set()
        await suspended
        assert await other.status(id_) == done
    assert (done.receivers, counts(done)["created"]) == (35, 35)
    assert len(gated.sent) == 10, "it published no further page"
    assert sorted(queues.ids(id_).values()) == [1] * 35


async def test_row_18_a_turn_that_comes_back_late_writes_nothing_more(
    url: str, users: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale_queues, queues = Queues(), Queues()
    sources = {"auth": users.url}
    resumed = asyncio.Event()

    async def second_page() -> list[dict[str, Any]]:
        if users.asked.count(("all", 2)) > 1:
            return users.people["all"][10:20]
        await resumed.wait()
        return [user(number) for number in range(100, 110)]

    users.answers["all", 2] = second_page
    async with (
        mailings(url, sources, queues=stale_queues) as stale,
        mailings(url, sources, queues=queues) as other,
    ):
        id_ = await stale.post(posting(receivers=PAGES))
        suspended = asyncio.create_task(stale.expansion.run_once(1))
        await until(lambda: ("all", 2) in users.asked and len(stale_queues.sent) == 10)
        await until(lambda: _pages(stale, id_, 1))
        monkeypatch.setattr(turn, "LONGEST", 0.0)
        await other.due(id_)
        await other.expansion.run_once(1)
        resumed.set()
        await suspended
        status = await other.expand(id_)
    assert len(stale_queues.sent) == 10, "of the first page only"
    assert (status.receivers, counts(status)) == (35, {"created": 35})
    assert len(queues.ids(id_)) == 25


async def _pages(it: Mailings, id_: UUID, pages: int) -> bool:
    return (await it.status(id_)).pages == pages


async def test_a_turn_that_lasts_keeps_its_lease(
    url: str, users: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (
        "services.mailings.expansion.worker.LEASE",
        "services.mailings.expansion.slice.LEASE",
    ):
        monkeypatch.setattr(module, 0.6)
    gated = Gated()
    async with mailings(url, {"auth": users.url}, queues=gated) as it:
        id_ = await it.post(posting(receivers=PAGES))
        slow = asyncio.create_task(it.expand(id_))
        await until(lambda: len(gated.sent) == 10)
        for _ in range(12):
            await asyncio.sleep(0.1)  # twice the lease
            assert await it.expansion.run_once(1) == 0
        gated.open.set()
        status = await slow
    assert (status.status, sum(gated.ids(id_).values())) == ("sending", 35)


async def test_two_processes_side_by_side_share_postings_and_repeat_nothing(
    url: str, users: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "LONGEST", 0.0)
    users.people["all"] = [user(number) for number in range(95)]
    queues = Queues()
    sources = {"auth": users.url}
    async with (
        mailings(url, sources, queues=queues) as one,
        mailings(url, sources, queues=queues) as two,
    ):
        ids = [await one.post(posting(receivers=PAGES)) for _ in range(6)]
        taken: list[int] = []

        async def work(run_once: Callable[[int], Any]) -> None:
            while count := await run_once(1):
                taken.append(count)

        await asyncio.gather(*(work(it.expansion.run_once) for it in (one, two, one, two)))
        statuses = [await one.status(id_) for id_ in ids]
    assert {(each.status, each.receivers) for each in statuses} == {("sending", 95)}
    assert [set(queues.ids(id_).values()) for id_ in ids] == [{1}] * 6
    assert sum(taken) == 60


async def test_row_32_told_to_stop_it_ends_with_the_page(url: str, users: Lists) -> None:
    users.people["all"] = [user(number) for number in range(500)]
    queues = Queues()
    async with mailings(url, {"auth": users.url}, queues=queues) as it:
        id_ = await it.post(posting(receivers=PAGES))
        running = asyncio.create_task(it.expansion.run_once(1))
        await until(lambda: queues.sent)
        await it.expansion.drain(5.0)
        await running
        assert await it.expansion.run_once(1) == 0
    async with mailings(url, {"auth": users.url}, queues=queues) as second:
        before = await second.status(id_)
        assert before.status == "expanding"
        status = await second.expand(id_)
    assert status.receivers == 500
    assert set(queues.ids(id_).values()) == {1}
