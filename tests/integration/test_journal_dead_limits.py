"""N7: millions of dead letters, and many viewers, hold up neither the journal nor each other."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.journal.dead import index as letter_index
from services.journal.dead import moving as job_moves
from services.journal.dead import reconciliation
from services.journal.dead.index import LetterIndex
from services.journal.dead.letters import LetterReader
from services.journal.dead.reconciliation import Reconciliation
from services.journal.dead.requests import DeadRequests
from services.journal.jobs.requests import JobRequests
from services.journal.reading import reading
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.queue_browser import browse_queue
from shared.contracts.journal_dead import (
    GROUP_DEAD,
    LIST_DEAD,
    LIST_JOBS,
    READ_JOB,
    START_REDRIVE,
)
from shared.pagination import END
from shared.topology import dead_queue
from tests.fakes.moving import OMAR, Mover, dead_letter, fact_of, mover, working
from tests.fakes.waiting import until

GONE = "the receiver responded with 410: gone"
REFUSED = "gave up after 5 attempts: the receiver responded with 503"


@pytest.fixture
async def moving(shared_amqp_url: str, database_url: str) -> AsyncIterator[Mover]:
    """Run a mover. Each test uses a work queue of its own."""
    async with mover(shared_amqp_url, database_url) as running:
        yield running


async def test_n7_a_redrive_does_not_wait_until_its_queue_is_read(
    moving: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, letters = "events", [dead_letter("events") for _ in range(30)]
    await moving.add(queue, letters)
    monkeypatch.setattr(reconciliation, "PREFETCH", 10)
    monkeypatch.setattr(job_moves, "HOLD_TIMEOUT", 1.0)
    chunks, started, ended = 0, asyncio.Event(), asyncio.Event()
    add = Reconciliation._add  # noqa: SLF001 - where the reading is slow

    async def slow(self: Reconciliation, *arguments: Any) -> int:
        nonlocal chunks
        chunks += 1
        if chunks > 1:
            await ended.wait()
        count = await add(self, *arguments)
        await started.wait()
        return count

    monkeypatch.setattr(Reconciliation, "_add", slow)
    async with moving.connected() as broker, working(moving.worker):
        reading = asyncio.create_task(moving.reconciliation.read(broker, queue))
        await until(lambda: chunks)
        job = (await moving.start(START_REDRIVE, queue, rate=10_000))["job"]
        started.set()
        found = await moving.ended(job)
        ended.set()
        await reading
    assert (found["status"], found["done"], found["failed"]) == ("finished", 30, 0)


async def test_n7_a_long_queue_is_read_by_few_consumers(moving: Mover) -> None:
    queue = "postings"
    await moving.put([dead_letter(queue) for _ in range(95)])
    consumers, tags = set[int](), list[int]()
    async with moving.connected() as broker:
        channel = await broker.connection.channel(publisher_confirms=False)
        async with browse_queue(broker, dead_queue(queue), prefetch=10) as browser:
            held: list[Delivery] = []
            async for delivery in browser:
                held.append(delivery)
                tags.append(delivery.tag)
                if len(held) % 15 == 0:  # some of this consumer, and some of those before
                    browser.remove(held[-1])
                    browser.remove(held[-12])
                state = await channel.queue_declare(dead_queue(queue), passive=True)
                consumers.add(state.consumer_count or 0)
            assert browser.is_complete
    assert len(set(tags)) == 95
    assert consumers == {1, 2}
    assert len(await moving.letters(queue)) == 95 - 12


async def test_n7_letters_are_counted_and_listed_in_parts(
    moving: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, windows = "user_events", 7
    monkeypatch.setattr(letter_index, "COUNT_WINDOW", windows)
    monkeypatch.setattr(letter_index, "PAGE_WINDOW", windows)
    monkeypatch.setattr(letter_index, "SEARCH_TIME", 0.0)
    reasons = [REFUSED if number % 9 == 0 else GONE for number in range(40)]
    other = [fact_of("events", dead_letter("events", reason=REFUSED)) for _ in range(20)]
    facts = [fact_of(queue, dead_letter(queue, reason=reason)) for reason in reasons]
    for fact, another in zip(facts, [*other, *other], strict=True):
        await moving.record(fact, another)

    counted = await moving.start(
        START_REDRIVE, queue, dry_run=True, filter={"reason": "responded with 5"}
    )
    pages, cursor = [], None
    while True:
        more: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
        page = await moving.call(
            LIST_DEAD, queue=queue, limit=3, filter={"reason": "responded with 5"}, **more
        )
        pages.append([letter["letter_id"] for letter in page["items"]])
        if (cursor := page["next_cursor"]) is None:
            break

    expected = [fact.letter_id for fact in facts if fact.reason == REFUSED]
    assert counted["matching"] == len(expected) == 5
    assert sorted(id_ for page in pages for id_ in page) == sorted(expected)
    assert len(pages) > 2, "a page reads one window"
    assert max(map(len, pages)) <= 3


async def test_n6_facts_are_stored_while_letters_are_counted(
    moving: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = "mailings.starts"
    await moving.record(*(fact_of(queue, dead_letter(queue)) for _ in range(5)))
    count = LetterIndex.count

    async def late(self: LetterIndex, selection: Any) -> int:
        await moving.record(fact_of(queue, dead_letter(queue)))
        return await count(self, selection)

    monkeypatch.setattr(LetterIndex, "count", late)
    started = await moving.start(START_REDRIVE, queue, filter={"client_id": "shop"})
    jobs = await moving.jobs.list(END, 10, kind=None, status=None, client_id=None)
    assert [(str(each.id), each.matching) for each in jobs] == [(started["job"], 5)]
    assert await moving.total(queue) == 6


async def test_n7_the_letters_of_a_window_are_found_by_an_index(moving: Mover) -> None:
    await moving.database.execute(
        "INSERT INTO journal.letters (at, queue, letter_id, reason, reason_key)"
        " SELECT now(), 'q' || n % 50, n::text, 'r', 'r' FROM generate_series(1, 20000) n"
    )
    # Otherwise the plan depends on when autovacuum has counted the rows.
    await moving.database.execute("ANALYZE journal.letters")
    async with reading(moving.database) as connection:
        for name, arguments in (
            ("letters_after", ("q1", 0, 1 << 60, 100)),
            ("last_letter", ("q1",)),
        ):
            plan = await connection.fetchval(
                f"EXPLAIN (FORMAT JSON) {letter_index.SQL[name]}", *arguments
            )
            assert "letters_seq" in json.dumps(plan), plan


async def test_a10_reads_of_letters_and_jobs_wait_for_their_turn(moving: Mover) -> None:
    """A viewer who opens many pages occupies neither the pool nor the broker."""
    slots = asyncio.Semaphore(1)
    requests = DeadRequests(
        moving.database,
        moving.index,
        moving.jobs,
        LetterReader(moving.url, name="test"),
        slots,
        wake=lambda: None,
    )
    handlers = {**requests.handlers(), **JobRequests(moving.jobs, slots).handlers()}
    bodies: dict[str, dict[str, Any]] = {
        LIST_DEAD.name: {"queue": "callbacks", "filter": {"reason": "x"}},
        GROUP_DEAD.name: {"queue": "callbacks"},
        LIST_JOBS.name: {},
        READ_JOB.name: {"id": "0b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10"},
    }
    async with slots:
        calls = [
            asyncio.ensure_future(handlers[name](OMAR, json.dumps(body).encode()))
            for name, body in bodies.items()
        ]
        await moving.database.fetch("SELECT pg_sleep(0.2)")  # longer than any of them takes
        assert not any(call.done() for call in calls)
    assert all(await asyncio.gather(*calls))
