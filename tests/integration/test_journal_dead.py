"""N7: dead letters are counted, listed, redriven and discarded by a filter, exactly."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from services.journal.dead import moving as job_moves
from services.journal.dead import reconciliation
from services.journal.jobs import tries as job_tries
from services.journal.jobs import worker as job_worker
from shared.amqp.connection import BrokerConnection, connect
from shared.amqp.consumer import Consumer
from shared.amqp.message import ConsumerSpec
from shared.amqp.publisher import OutgoingMessage, PublishUnknownError, QueueFullError
from shared.amqp.queue_browser import browse_queue
from shared.amqp.rpc import RequestContext
from shared.clock import SystemClock
from shared.contracts import headers
from shared.contracts.journal_dead import (
    CANCEL_JOB,
    GROUP_DEAD,
    LIST_DEAD,
    LIST_JOBS,
    READ_JOB,
    READ_LETTER,
    START_DISCARD,
    START_REDRIVE,
)
from shared.contracts.requests import Failure, FailureCode
from shared.errors import PermanentError
from shared.process.health import Health
from shared.topology import dead_queue, topology
from tests.fakes.moving import OMAR, TARGET, Mover, dead_letter, fact_of, mover, working
from tests.fakes.waiting import until

OTHER = "http://other.example:8080"
REFUSED = "gave up after 5 attempts: the receiver responded with 503"


@pytest.fixture
async def moving(shared_amqp_url: str, database_url: str) -> AsyncIterator[Mover]:
    """Run a mover. Each test uses a work queue of its own."""
    async with mover(shared_amqp_url, database_url) as running:
        yield running


def own_ids(letters: Sequence[OutgoingMessage]) -> set[str]:
    return {str((letter.properties.headers or {})[headers.LETTER]) for letter in letters}


def logical_ids(letters: Sequence[OutgoingMessage]) -> set[str]:
    return {json.loads(letter.body)["id"] for letter in letters}


async def test_n7_letters_are_grouped_by_reason_and_target(moving: Mover) -> None:
    queue = "events"
    letters = [
        *(dead_letter(queue) for _ in range(3)),
        *(dead_letter(queue, reason=REFUSED, target=OTHER) for _ in range(2)),
        dead_letter(queue, reason=REFUSED.replace("5 attempts", "1 attempt")),
    ]
    await moving.record(*(fact_of(queue, letter) for letter in letters))
    await moving.record(*(fact_of(queue, letter) for letter in letters))  # facts can be repeated

    reasons = await moving.call(GROUP_DEAD, queue=queue)
    targets = await moving.call(GROUP_DEAD, queue=queue, group_by="target")
    group = reasons["items"][0]["key"]
    counts = {
        name: await moving.start(START_REDRIVE, queue, dry_run=True, filter=chosen)
        for name, chosen in {
            "all": {},
            "group": {"reason": group},
            "text": {"reason": "RESPONDED with 5"},
            "target": {"target": "http://other.example:8080/path"},
            "client": {"client_id": "bank"},
            "time": {"since": "2026-11-18T11:06:41Z"},
            "both": {"reason": group, "target": TARGET},
        }.items()
    }

    assert reasons == {
        "items": [
            {"key": "gave up after # attempts: the receiver responded with 503", "count": 3},
            {"key": "the receiver responded with 410: gone for good", "count": 3},
        ],
        "next_cursor": None,
        "total": 6,
    }
    assert targets["items"] == [{"key": TARGET, "count": 4}, {"key": OTHER, "count": 2}]
    expected = {"all": 6, "group": 3, "text": 3, "target": 2, "client": 0, "time": 0, "both": 1}
    assert {name: found["matching"] for name, found in counts.items()} == expected


async def test_n7_letters_are_listed_in_pages_and_read_without_secrets(moving: Mover) -> None:
    queue = "postings"
    letters = [dead_letter(queue, hmac_secret="canary") for _ in range(5)]
    await moving.add(queue, letters)

    first = await moving.call(LIST_DEAD, queue=queue, limit=3)
    second = await moving.call(LIST_DEAD, queue=queue, limit=3, cursor=first["next_cursor"])
    letter = second["items"][0]
    shown = await moving.call(READ_LETTER, queue=queue, id=letter["letter_id"])
    missing = await moving.call(READ_LETTER, queue=queue, id="0" * 32)
    refused = await moving.call(LIST_DEAD, RequestContext("shop"), queue=queue)
    unknown = await moving.call(LIST_DEAD, queue="nothing")

    items = [*first["items"], *second["items"]]
    assert [item["letter_id"] for item in items] == [
        str((each.properties.headers or {})[headers.LETTER]) for each in reversed(letters)
    ]
    assert second["next_cursor"] is None
    assert letter["target"] == TARGET
    assert letter.items() <= shown.items()
    assert (shown["attempts"], shown["body"]["hmac_secret"]) == (3, "******")
    assert "canary" not in json.dumps(shown)
    assert isinstance(missing, Failure)
    assert missing.code == FailureCode.NOT_FOUND
    assert isinstance(refused, Failure)
    assert refused.code == FailureCode.FORBIDDEN
    assert isinstance(unknown, Failure)
    assert len(await moving.letters(queue)) == 5


async def test_n7_a_redrive_moves_what_matches_once(moving: Mover) -> None:
    queue = "schedules"
    chosen = [dead_letter(queue, reason=REFUSED) for _ in range(250)]
    others = [dead_letter(queue) for _ in range(40)]
    await moving.add(queue, [*others[:20], *chosen, *others[20:]])

    async with working(moving.worker):
        started = await moving.start(START_REDRIVE, queue, filter={"reason": "503"}, rate=10_000)
        job = await moving.ended(started["job"])

    assert (job["status"], job["matching"], job["done"], job["failed"]) == (
        *("finished", 250, 250, 0),
    )
    redriven = await moving.read(queue)
    assert Counter(letter.id for letter in redriven) == Counter(logical_ids(chosen))
    left = {headers.LETTER, headers.REASON, headers.DIED_AT, headers.ATTEMPT}
    assert not left & set(redriven[0].message.properties.headers or {})
    assert {letter.letter_id for letter in await moving.letters(queue)} == own_ids(others)
    assert await moving.total(queue) == 40
    audit = await moving.database.fetch("SELECT actor, action, object, result FROM journal.audit")
    assert [tuple(row) for row in audit] == [
        ("omar", "redrive", queue, "started"),
        ("omar", "redrive", queue, "finished"),
    ]


async def test_n7_a_discard_removes_what_matches(moving: Mover) -> None:
    queue = "messages.email"
    discarded = [dead_letter(queue, target=OTHER) for _ in range(30)]
    kept = [dead_letter(queue) for _ in range(10)]
    await moving.add(queue, [*discarded, *kept])

    async with working(moving.worker):
        started = await moving.start(START_DISCARD, queue, filter={"target": OTHER}, rate=10_000)
        job = await moving.ended(started["job"])

    assert (job["kind"], job["done"]) == ("discard", 30)
    assert await moving.read(queue) == []
    assert {letter.letter_id for letter in await moving.letters(queue)} == own_ids(kept)
    assert await moving.total(queue) == 10


async def test_n7_a_job_keeps_its_rate_and_is_cancelled_within_a_second(moving: Mover) -> None:
    queue = "messages.sms"
    await moving.add(queue, [dead_letter(queue) for _ in range(100)])
    request = RequestContext(operator=True, actor="omar", message_id="request-1")

    async with working(moving.worker):
        began = asyncio.get_running_loop().time()
        job = (await moving.start(START_REDRIVE, queue, request, rate=20))["job"]
        again = await moving.start(START_REDRIVE, queue, request, rate=20)
        second = await moving.start(START_DISCARD, queue)
        await until(lambda: progress(moving, job, 20), 30.0)
        seconds = asyncio.get_running_loop().time() - began
        await moving.call(CANCEL_JOB, id=job)
        await asyncio.sleep(1.0)
        after_a_second = (await moving.call(READ_JOB, id=job))["done"]
        await asyncio.sleep(1.0)
        found = await moving.call(READ_JOB, id=job)
        listed = await moving.call(LIST_JOBS, status="cancelled")

    assert again == {"job": job}, "the same request has started a second job"
    assert isinstance(second, Failure)
    assert second.code == FailureCode.CONFLICT
    assert job in second.detail
    assert seconds > 0.5, "20 letters in less than half a second, at 20 a second"
    assert found["status"] == "cancelled"
    assert found["done"] == after_a_second < 100
    assert [each["id"] for each in listed["items"]] == [job]
    await until(lambda: length(moving, queue, 100 - found["done"]), 30.0)
    assert len(await moving.read(queue)) == found["done"]
    assert await moving.total(queue) == 100 - found["done"]


async def progress(moving: Mover, job: str, done: int) -> bool:
    found = await moving.jobs.get(UUID(job))
    return found is not None and found.done >= done


async def length(moving: Mover, queue: str, expected: int) -> bool:
    return len(await moving.letters(queue)) == expected


async def test_n7_letters_that_die_again_are_not_moved_again(moving: Mover) -> None:
    """Also: each dead letter of a consumer has a fact, with an id of its own."""
    queue, facts = "user_events", list[Any]()
    handled = Counter[str]()

    async def fail(message: Any, _: Any) -> None:
        handled[message.id] += 1
        raise PermanentError("still broken")

    async def send_facts(sent: Sequence[Any]) -> None:
        facts.extend(sent)
        await moving.record(*sent)

    spec: ConsumerSpec[Any, None] = ConsumerSpec(
        queue=queue,
        parse=lambda message: json.loads(message.body),
        identity=lambda body: str(body["id"]),
        handle=fail,
        report=lambda *_: None,
        send_facts=send_facts,
    )
    consumer = Consumer(
        spec,
        url=moving.url,
        name="test consumer",
        topology=topology(),
        publisher=moving.publisher,
        prefetch=10,
        clock=SystemClock(),
        health=Health(),
    )
    letters = [dead_letter(queue) for _ in range(60)]
    await moving.add(queue, letters)
    # One letter is missing, so the job reads the queue again, with the letters that died again.
    await moving.record(fact_of(queue, dead_letter(queue)))

    consuming = asyncio.create_task(consumer.run())
    try:
        async with working(moving.worker):
            started = await moving.start(START_REDRIVE, queue, rate=100)
            job = await moving.ended(started["job"])
        await until(lambda: len(facts) >= 60, 30.0)
    finally:
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)

    assert (job["matching"], job["done"], job["failed"]) == (61, 60, 1)
    assert set(handled.values()) == {1}
    dead = await moving.letters(queue)
    assert {letter.letter_id for letter in dead} == {fact.letter_id for fact in facts}
    assert not {fact.letter_id for fact in facts} & own_ids(letters)
    assert {fact.logical_id for fact in facts} == logical_ids(letters)
    fact = facts[0]
    assert (fact.reason, fact.target, fact.client_id) == ("still broken", TARGET, "shop")
    assert await moving.total(queue) == 61


async def test_n7_letters_without_a_fact_are_found(
    moving: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ itself dead-letters without a fact, and anybody can delete messages."""
    monkeypatch.setattr(reconciliation, "PATIENCE", 0.0)
    queue, index = "mailings.starts", moving.reconciliation
    known = [dead_letter(queue) for _ in range(5)]
    unknown = [dead_letter(queue, own_id=None) for _ in range(1200)]
    await moving.record(*(fact_of(queue, letter) for letter in known))  # but they are not there
    twice, twins = dead_letter(queue), dead_letter(queue, own_id=None)
    await moving.put([*unknown, twice, twice, twins, twins])

    async with moving.connected() as broker:
        assert queue in await index.compare(broker)
        await index.read(broker, queue)
        assert await moving.total(queue) == 1202
        assert queue not in await index.compare(broker)
        async with working(moving.worker):
            started = await moving.start(START_REDRIVE, queue, rate=10_000)
            job = await moving.ended(started["job"])

    assert (job["matching"], job["done"], job["failed"]) == (1202, 1202, 0)
    redriven = Counter(letter.id for letter in await moving.read(queue))
    # Ringback's own id says that two letters are one. Without one, they may be two.
    assert redriven == Counter(logical_ids([*unknown, twice, twins])) + Counter(
        logical_ids([twins])
    )
    assert await moving.letters(queue) == []


async def test_a_letter_that_another_consumer_has_held_is_not_lost(moving: Mover) -> None:
    """Someone looks at a letter while the queue is read, and puts it back."""
    queue, index = "callbacks", moving.reconciliation
    letters = [dead_letter(queue) for _ in range(3)]
    await moving.add(queue, letters)

    async with moving.connected() as broker:
        viewer = await broker.connection.channel(publisher_confirms=False)
        await viewer.basic_get(dead_queue(queue))
        await index.read(broker, queue)
        without = await moving.total(queue)
        await viewer.close()
        await until(lambda: length(moving, queue, 3))
        await index.read(broker, queue)

    assert without == 2
    assert await moving.total(queue) == 3
    assert {letter.letter_id for letter in await moving.letters(queue)} == own_ids(letters)


async def test_n7_a_difference_counts_when_it_has_stayed_for_a_minute(
    moving: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, index, now = "scheduler.outcomes", moving.reconciliation, [0.0]
    monkeypatch.setattr(index, "_clock", SimpleNamespace(monotonic=lambda: now[0]))
    found = []
    async with moving.connected() as broker:
        for seconds, more in ((0, 1), (50, 0), (61, 1), (100, 0), (121, 0)):
            now[0] = float(seconds)
            await moving.put([dead_letter(queue) for _ in range(more)])
            found.append(queue in await index.compare(broker))
        async with browse_queue(broker, dead_queue(queue)) as browser:
            await anext(browser)
            now[0] = 500.0
            assert queue not in await index.compare(broker), "a consumer holds letters"
    assert found == [False, False, False, False, True]


async def test_n7_a_job_survives_the_loss_of_its_connection(
    moving: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = "subscriptions.outcomes"
    letters = [dead_letter(queue) for _ in range(120)]
    await moving.add(queue, letters)
    opened: list[BrokerConnection] = []

    @asynccontextmanager
    async def recorded(url: str, *, name: str) -> AsyncIterator[BrokerConnection]:
        async with connect(url, name=name) as broker:
            opened.append(broker)
            yield broker

    monkeypatch.setattr(job_moves, "connect", recorded)

    async with working(moving.worker):
        started = await moving.start(START_REDRIVE, queue, rate=40)
        await until(lambda: progress(moving, started["job"], 20), 30.0)
        await opened[0].connection.close(ConnectionResetError("closed by the test"))
        job = await moving.ended(started["job"])

    assert (job["status"], job["done"], job["failed"]) == ("finished", 120, 0)
    redriven = await moving.read(queue)
    assert {letter.id for letter in redriven} == logical_ids(letters)
    assert len(redriven) <= 120 + 10, "more than the step in progress was published twice"
    assert len(opened) > 1
    assert await moving.letters(queue) == []


@pytest.mark.parametrize(
    ("queue", "error", "tries"),
    [
        (
            "mailings.outcomes",
            QueueFullError("the broker refused the message: a queue is full"),
            3,
        ),
        ("messages.sms.urgent", PublishUnknownError("no confirm within 5 seconds"), 2),
    ],
)
async def test_n7_a_redrive_that_the_broker_never_confirms_ends_and_says_why(
    moving: Mover, queue: str, error: Exception, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to publish the copies again each second, without end."""
    monkeypatch.setattr(job_tries, "MAX_REFUSED", 3)
    monkeypatch.setattr(job_tries, "MAX_UNKNOWN", 2)
    monkeypatch.setattr(job_worker, "RETRY_DELAY", 0.01)
    letters = [dead_letter(queue) for _ in range(5)]
    await moving.add(queue, letters)
    published = Counter[str]()
    [refused, *_] = [json.loads(letter.body)["id"] for letter in letters]
    publish = moving.publisher.publish

    def answer(message: OutgoingMessage) -> asyncio.Future[None]:
        if message.routing_key != queue:
            return publish(message)
        id_ = json.loads(message.body)["id"]
        published[id_] += 1
        if id_ != refused:
            return publish(message)
        result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        result.set_exception(error)
        return result

    monkeypatch.setattr(moving.publisher, "publish", answer)

    async with working(moving.worker):
        started = await moving.start(START_REDRIVE, queue, rate=10_000)
        job = await moving.ended(started["job"])

    assert (job["status"], job["done"], job["failed"]) == ("failed", 4, 0)
    assert str(error) in job["error"]
    # Tries that have confirmed others do not count: one, or more if the letters came apart.
    assert tries < published.pop(refused) < tries + len(letters)
    assert published == dict.fromkeys(set(logical_ids(letters)) - {refused}, 1)
    assert {letter.id for letter in await moving.letters(queue)} == {refused}
    assert await moving.total(queue) == 1


async def test_n7_what_is_no_longer_in_the_queue_has_failed(moving: Mover) -> None:
    queue = "mailings.reports"
    letters = [dead_letter(queue) for _ in range(20)]
    await moving.add(queue, letters)
    async with moving.connected() as broker:
        channel = await broker.connection.channel()
        await channel.queue_purge(dead_queue(queue))
    there = [dead_letter(queue) for _ in range(3)]
    await moving.add(queue, there)

    async with working(moving.worker):
        started = await moving.start(START_REDRIVE, queue, rate=10_000)
        job = await moving.ended(started["job"])

    assert (job["status"], job["matching"], job["done"], job["failed"]) == ("finished", 23, 3, 20)
    assert {letter.id for letter in await moving.read(queue)} == logical_ids(there)
    assert OMAR.actor == job["actor"]
