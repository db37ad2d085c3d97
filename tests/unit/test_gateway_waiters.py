"""U4, U6: open polls wait in memory, and no wake is lost between a read and a wait."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from unittest.mock import AsyncMock
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.polls import reading
from services.gateway.polls import waiters as waiters_module
from services.gateway.polls.reading import Event, EventReader, Page, next_page
from services.gateway.polls.waiters import TooManyPollsError, Waiter, Waiters
from shared.amqp.rpc import RequestContext

ANN, BOB = 1, 2


ADDRESS = "203.0.113.7"


def waiters(limit: int = 100, user_limit: int = 100, address_limit: int = 100) -> Waiters:
    return Waiters(limit=limit, user_limit=user_limit, address_limit=address_limit)


def token() -> str:
    return uuid4().hex


async def wait(waiter: Waiter, user_id: int = ANN, since: int = 0, seconds: float = 5.0) -> bool:
    until = asyncio.get_running_loop().time() + seconds
    return await waiter.wait(user_id, since=since, until=until)


class Inbox:
    """The events of ANN as the service subscriptions has them. `reads` counts the reads."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.reads = 0

    def reader(self, before: int = 0, after: int = 0) -> Callable[[], Awaitable[Page]]:
        """Return a poll's read, with steps of the event loop before and after the query."""

        async def read() -> Page:
            self.reads += 1
            await steps(before)
            events = list(self.events)
            await steps(after)
            return Page(ANN, events, str(len(events)))

        return read


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


EVENT = Event("c", "new_message", "{}")


async def test_u4_a_wake_ends_the_waits_of_its_user_only() -> None:
    all_ = waiters()
    with (
        all_.open(token(), ADDRESS) as first,
        all_.open(token(), ADDRESS) as second,
        all_.open(token(), ADDRESS) as other,
    ):
        waits = [asyncio.create_task(wait(w)) for w in (first, second)]
        others = asyncio.create_task(wait(other, BOB))
        await steps(2)
        all_.wake([ANN, 99])
        assert await asyncio.gather(*waits) == [True, True]
        assert not others.done()
        all_.wake_all()
        assert await others is True


async def test_u6_a_wake_between_the_mark_and_the_wait_is_not_lost() -> None:
    all_ = waiters()
    with all_.open(token(), ADDRESS) as waiter:
        mark = waiter.mark()
        all_.wake([ANN])
        assert await wait(waiter, since=mark) is True
        assert await wait(waiter, since=waiter.mark(), seconds=0) is False
        assert await wait(waiter, BOB, since=mark, seconds=0) is False


async def test_u6_a_wake_of_everybody_before_the_wait_is_not_lost() -> None:
    all_ = waiters()
    with all_.open(token(), ADDRESS) as waiter:
        mark = waiter.mark()
        all_.wake_all()
        assert await wait(waiter, since=mark) is True


async def test_u6_wakes_that_are_forgotten_end_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiters_module, "MAX_RECENT", 3)
    all_ = waiters()
    with all_.open(token(), ADDRESS) as waiter:
        mark = waiter.mark()
        all_.wake([ANN])
        for user_id in range(10, 13):
            all_.wake([user_id])
        assert await wait(waiter, since=mark) is True
        assert await wait(waiter, since=waiter.mark(), seconds=0) is False


@given(
    before=st.integers(0, 5),
    after=st.integers(0, 5),
    commit=st.integers(0, 12),
    publish=st.integers(0, 12),
    everybody=st.booleans(),
)
async def test_u6_an_event_reaches_a_poll_in_every_order_of_read_commit_and_wake(
    before: int, after: int, commit: int, publish: int, *, everybody: bool
) -> None:
    all_, inbox = waiters(), Inbox()
    with all_.open(token(), ADDRESS) as waiter:
        poll = asyncio.create_task(next_page(inbox.reader(before, after), waiter, timeout=60))
        await steps(commit)
        inbox.events.append(EVENT)
        await steps(publish)
        if everybody:
            all_.wake_all()
        else:
            all_.wake([ANN])
        await steps(40)
        assert poll.done(), "the poll waits although there is an event"
        assert (await poll).events == [EVENT]


async def test_u4_a_poll_reads_once_while_nothing_happens_and_ends_empty() -> None:
    all_, inbox = waiters(), Inbox()
    with all_.open(token(), ADDRESS) as waiter:
        poll = asyncio.create_task(next_page(inbox.reader(), waiter, timeout=0.05))
        await steps(5)
        for user_id in range(10, 500):
            all_.wake([user_id])
        assert (await poll).events == []
    assert inbox.reads == 1


async def test_u4_a_poll_with_the_timeout_0_reads_once() -> None:
    inbox = Inbox()
    with waiters().open(token(), ADDRESS) as waiter:
        assert (await next_page(inbox.reader(), waiter, timeout=0)).events == []
    assert inbox.reads == 1


async def test_u4_a_shutdown_ends_all_waits_and_those_that_begin_later() -> None:
    all_, inbox = waiters(), Inbox()
    with all_.open(token(), ADDRESS) as waiter, all_.open(token(), ADDRESS) as in_a_read:
        waiting = asyncio.create_task(wait(waiter))
        reading = asyncio.create_task(next_page(inbox.reader(5, 5), in_a_read, timeout=60))
        await steps(3)
        all_.close()
        assert await waiting is False
        assert (await reading).events == []
        with all_.open(token(), ADDRESS) as late:
            inbox.events.append(EVENT)
            assert (await next_page(inbox.reader(), late, timeout=60)).events == [EVENT]
            assert await wait(late) is False


async def test_u4_a_disconnected_client_ends_its_own_wait_only() -> None:
    all_ = waiters()
    with all_.open(token(), ADDRESS) as waiter, all_.open(token(), ADDRESS) as other:
        gone, stays = asyncio.create_task(wait(waiter)), asyncio.create_task(wait(other))
        await steps(2)
        waiter.end()
        assert await gone is False
        assert not stays.done()
        other.end()
        await stays


async def test_u4_open_polls_are_limited_per_process_and_per_user() -> None:
    all_ = waiters(limit=3, user_limit=2)
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(all_.open(token(), ADDRESS)) for _ in range(3))
        with pytest.raises(TooManyPollsError), all_.open(token(), ADDRESS):
            pass
        for waiter in (first, second, first):
            assert await wait(waiter, seconds=0) is False
        with pytest.raises(TooManyPollsError):
            await wait(third, seconds=0)
        assert await wait(third, BOB, seconds=0) is False
    assert len(all_) == 0
    with all_.open(token(), ADDRESS) as waiter:
        assert await wait(waiter, seconds=0) is False
    assert not all_._of_user  # noqa: SLF001 - users without waiters are forgotten


def test_row_34_open_polls_are_limited_per_token_before_their_first_read() -> None:
    all_ = waiters(user_limit=2)
    with all_.open("a", ADDRESS), all_.open("b", ADDRESS):
        with all_.open("a", ADDRESS), pytest.raises(TooManyPollsError), all_.open("a", ADDRESS):
            pass
        with all_.open("a", ADDRESS):
            pass
    assert not all_._of_token  # noqa: SLF001 - tokens without waiters are forgotten


def test_u4_open_polls_are_limited_per_address() -> None:
    all_ = waiters(address_limit=1)
    for _ in range(2):
        with all_.open(token(), ADDRESS):
            with pytest.raises(TooManyPollsError), all_.open(token(), ADDRESS):
                pass
            with all_.open(token(), "203.0.113.8"):
                pass
    assert not all_._of_address  # noqa: SLF001 - addresses without waiters are forgotten


async def test_row_34_clients_that_read_slowly_get_one_event_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "MAX_HELD", 3)
    services = AsyncMock()
    services.request.return_value = {"user_id": ANN, "events": [], "next_cursor": "c"}
    reader = EventReader(services)
    limits = []

    async def read() -> None:
        await reader.read("t", cursor=None, limit=100, context=RequestContext(None, None))
        limits.append(json.loads(services.request.call_args.args[1])["limit"])

    page = Page(ANN, [EVENT], "c")
    with reader.holding(page):
        await read()
        with reader.holding(page):
            await read()
    await read()
    assert limits == [100, 1, 100]


def test_the_memory_of_wakes_is_bounded() -> None:
    all_ = waiters()
    for start in range(0, 5 * waiters_module.MAX_RECENT, 1000):
        all_.wake(range(start, start + 1000))
    assert len(all_._recent) == waiters_module.MAX_RECENT  # noqa: SLF001
