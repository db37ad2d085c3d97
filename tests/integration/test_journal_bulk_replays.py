"""N7: a bulk replay on a real database. The broker is the publisher's result for each message."""

import asyncio
import json
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.journal.app import SCHEMA
from services.journal.audit.store import Audit
from services.journal.jobs import tries as job_tries
from services.journal.jobs import worker as job_worker
from services.journal.jobs.store import Jobs
from services.journal.jobs.worker import JobWorker
from services.journal.partitions import Partitions
from services.journal.reading import reading
from services.journal.replays import store as replay_store
from services.journal.replays.bulk import BulkReplay
from services.journal.replays.bulk_requests import BulkReplayRequests
from services.journal.replays.sending import ReplaySender
from services.journal.replays.store import FIRST, LAST, Replays, SearchTooSlowError, Selection
from services.journal.reseal import reseal
from services.journal.store import SQL, Store
from shared.amqp.fact_sender import FactSender
from shared.amqp.publisher import (
    OutgoingMessage,
    Publisher,
    PublishUnknownError,
    QueueFullError,
    UnpublishableError,
)
from shared.amqp.rpc import RequestContext
from shared.clock import SystemClock
from shared.contracts import headers
from shared.contracts.facts import CallbackDead
from shared.contracts.journal import Filter, JobKind, JobStarted
from shared.contracts.journal_replays import START_REPLAY
from shared.contracts.kept_requests import pack
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.security.encryption import SecretCipher
from shared.topology import CALLBACKS, topology
from tests.fakes.journal import RETENTION, TARGET, empty_journal
from tests.fakes.moving import working
from tests.fakes.waiting import until

CIPHER = SecretCipher([bytes(32)])
OMAR = RequestContext(operator=True, actor="omar")
# Decides what the broker does with the callback of this id: None, or the error of the publish.
Answer = Callable[[str], Exception | None]


def dead(callback_id: str, **fields: Any) -> CallbackDead:
    """Return the fact of a failed attempt, with its kept request."""
    body = {"target_url": f"{TARGET}/hook", "hmac_secret": "secret", "payload": {"n": 1}}
    command = json.dumps(body | {"client_id": "shop"})
    sealed = CIPHER.encrypt(pack(callback_id, command.encode()))
    given: dict[str, Any] = {
        "fact_id": callback_id,
        "at": datetime.now(UTC),
        "callback_id": callback_id,
        "client_id": "shop",
        "target": TARGET,
        "attempt": 1,
        "status": 503,
        "duration": 0.01,
        "reason": "overloaded",
        "request": b64encode(sealed).decode(),
    }
    return CallbackDead(**given | fields)


@dataclass
class Replaying:
    """The parts of a journal that replay, and how often each callback was published."""

    database: Database
    replays: Replays
    jobs: Jobs
    worker: JobWorker
    requests: BulkReplayRequests
    published: Counter[str]
    answer: Answer = lambda _: None

    async def store(self, facts: Iterable[CallbackDead]) -> None:
        store = Store(self.database, Partitions(self.database), retention=RETENTION)
        position = await store.position()
        await store.add(list(facts), position, position)

    async def replay(self, **fields: Any) -> Any:
        """Replay everything that failed, and return the job at its end."""
        respond = self.requests.handlers()[START_REPLAY.name]
        started = await respond(OMAR, json.dumps(fields).encode())
        assert isinstance(started, JobStarted)

        async def over() -> Any:
            job = await self.jobs.get(started.job)
            return job if job is not None and job.finished_at else None

        async with working(self.worker):
            return await until(over, 60.0)


@pytest.fixture
async def replaying(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replaying]:
    await empty_journal(database_url)
    health = Health()
    database = Database(database_url, name="test", health=health, schema=SCHEMA)
    publisher = Publisher("amqp://unused", name="test", topology=topology(), health=health)
    facts = FactSender(publisher, url="amqp://unused", name="test", health=health)
    jobs, replays = Jobs(database, Audit(database)), Replays(database)
    sender = ReplaySender(publisher, facts, CIPHER, SystemClock(), lambda _: None)
    bulk = BulkReplay(database, replays, sender, jobs, CIPHER)
    worker = JobWorker(jobs, {JobKind.REPLAY: bulk.work})
    requests = BulkReplayRequests(database, replays, jobs, CIPHER, wake=worker.wake)
    parts = Replaying(database, replays, jobs, worker, requests, Counter())

    def publish(_: Publisher, message: OutgoingMessage) -> asyncio.Future[None]:
        result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        error = None
        if message.routing_key == CALLBACKS:
            id_ = str((message.properties.headers or {})[headers.ID])
            parts.published[id_] += 1
            error = parts.answer(id_)
        if isinstance(error, UnpublishableError):
            raise error
        if error is None:
            result.set_result(None)
        else:
            result.set_exception(error)
        return result

    monkeypatch.setattr(Publisher, "publish", publish)
    monkeypatch.setattr(job_worker, "RETRY_DELAY", 0.01)
    maintaining = asyncio.create_task(database.run())
    try:
        await database.ready()
        yield parts
    finally:
        maintaining.cancel()
        await asyncio.gather(maintaining, return_exceptions=True)


IDS = [f"c{number}" for number in range(6)]


async def test_n7_only_the_refused_part_of_a_batch_is_sent_again(replaying: Replaying) -> None:
    await replaying.store(map(dead, IDS))
    full = QueueFullError("the broker refused the message: a queue is full")
    replaying.answer = lambda id_: (
        full if id_ in IDS[2:4] and replaying.published[id_] < 4 else None
    )

    job = await replaying.replay(rate=10_000)

    assert (job.status, job.matching, job.done, job.failed) == ("finished", 6, 6, 0)
    assert replaying.published == {**dict.fromkeys(IDS, 1), **dict.fromkeys(IDS[2:4], 4)}


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (QueueFullError("the broker refused the message: a queue is full"), 3),
        (PublishUnknownError("no confirm within 5 seconds"), 2),
    ],
)
async def test_n7_a_replay_that_the_broker_never_confirms_ends_and_says_why(
    replaying: Replaying, error: Exception, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_tries, "MAX_REFUSED", 3)
    monkeypatch.setattr(job_tries, "MAX_UNKNOWN", 2)
    await replaying.store(map(dead, IDS))
    replaying.answer = lambda id_: error if id_ == IDS[0] else None

    job = await replaying.replay(rate=10_000)

    assert (job.status, job.done, job.failed) == ("failed", 5, 0)
    assert str(error) in job.error
    # The first try has confirmed the others, so it does not count.
    assert replaying.published == {**dict.fromkeys(IDS, 1), IDS[0]: tries + 1}


async def test_n7_a_message_that_cannot_be_published_fails_alone(replaying: Replaying) -> None:
    await replaying.store(map(dead, IDS))
    replaying.answer = lambda id_: UnpublishableError("too large") if id_ == IDS[1] else None
    job = await replaying.replay(rate=10_000)
    assert (job.status, job.done, job.failed) == ("finished", 5, 1)


async def _entries(database: Database, count: int, **columns: str) -> None:
    """Insert failed attempts. Each column is an SQL expression of `n`."""
    await Partitions(database).create_ahead()
    given = {
        "at": "now() - n * interval '1 microsecond'",
        "kind": "'attempt'",
        "outcome": "'failed'",
        "client_id": "'shop'",
        "callback_id": "'c' || n",
        "target": f"'{TARGET}'",
        "reason": "'overloaded'",
    } | columns
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL statement_timeout = '60s'")
        await connection.execute(
            f"INSERT INTO journal.entries ({', '.join(given)})"  # noqa: S608 - of this test
            f" SELECT {', '.join(given.values())} FROM generate_series(1, {count}) n",
            timeout=60,
        )


FAILED = Selection(Filter(), failed=True, client_id=None, horizon=1 << 62)


async def test_n7_attempts_with_one_id_are_counted_in_linear_time(replaying: Replaying) -> None:
    """An event went to many endpoints: they share its id, and each has a reference of its own."""
    await _entries(
        replaying.database,
        12_000,
        callback_id="'same'",
        detail="jsonb_build_object('reference', (n % 6000)::text)",
    )
    assert await replaying.replays.count(FAILED) == 6000


async def test_n7_a_search_that_is_always_too_slow_ends(
    replaying: Replaying, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _entries(replaying.database, 10)
    slow = replay_store._SQL["matching"].replace(  # noqa: SLF001 - a statement that takes too long
        "FROM page p", "FROM page p CROSS JOIN pg_sleep(2)"
    )
    monkeypatch.setattr(replay_store, "_SQL", {**replay_store._SQL, "matching": slow})  # noqa: SLF001
    monkeypatch.setattr(replay_store, "SHRINK", replay_store.WINDOW + 1)
    with pytest.raises(SearchTooSlowError):
        await replaying.replays.count(FAILED)


def _rows_read(node: dict[str, Any], table: str) -> int:
    """Return how many rows of a table a plan has read."""
    own = 0
    if str(node.get("Relation Name", "")).startswith(table):
        rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        own = round(rows * node["Actual Loops"])
    return own + sum(_rows_read(child, table) for child in node.get("Plans", ()))


async def _plan(database: Database, sql: str, *arguments: Any) -> dict[str, Any]:
    async with reading(database) as connection:
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *arguments)
    plan: dict[str, Any] = json.loads(text)[0]["Plan"]
    return plan


@pytest.mark.parametrize("status", ["failed", "delivered"])
async def test_n7_the_replay_of_a_client_does_not_read_the_entries_of_others(
    replaying: Replaying, status: str
) -> None:
    others = {"client_id": "'other'", "callback_id": "'o' || n"}
    await _entries(replaying.database, 20_000, **others, outcome=f"'{status}'")
    await _entries(replaying.database, 20_000, **others, kind="'dead'", outcome="NULL")
    if status == "failed":
        await _entries(replaying.database, 20_000, outcome="'delivered'")
    await _entries(replaying.database, 50, outcome=f"'{status}'", callback_id="'own' || n")
    await replaying.database.execute("ANALYZE journal.entries")
    selection = Selection(Filter(), failed=status == "failed", client_id="shop", horizon=1 << 62)
    sql = replay_store._SQL["matching"].format(source=replay_store._source(selection))  # noqa: SLF001

    arguments = (FIRST, -1, LAST, 1 << 62, 2000, 100, "shop", None, None, True)
    plan = await _plan(replaying.database, sql, *arguments)

    assert _rows_read(plan, "entries_") <= 200, json.dumps(plan, indent=1)
    assert await replaying.replays.count(selection) == 50


async def test_n6_a_kept_request_is_searched_in_the_partitions_of_two_days(
    replaying: Replaying,
) -> None:
    days = [datetime.now(UTC) - timedelta(days=day) for day in range(10)]
    await replaying.store(dead(f"old-{day}", at=at) for day, at in enumerate(days))
    columns = [["c"], ["shop"], [""], [days[0]], [b"sealed"]]
    plan = await _plan(
        replaying.database,
        SQL["keep_requests"],
        *(*columns, days[0] - timedelta(days=1), days[0]),
    )
    read = {
        node["Relation Name"]
        for node in _nodes(plan)
        if str(node.get("Relation Name", "")).startswith("requests_") and node["Actual Loops"]
    }
    assert len(read) <= 2, read


def _nodes(node: dict[str, Any]) -> Iterable[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


async def test_n7_the_first_kept_request_is_sent_again(replaying: Replaying) -> None:
    """A callback that waits for days between two attempts is kept twice."""
    now = datetime.now(UTC)
    first, second = dead("c", at=now - timedelta(days=3)), dead("c", at=now)
    await replaying.store([first])
    await replaying.store([second, dead("c", at=now, reference="7"), dead("d", client_id="bank")])
    kept = await replaying.replays.kept("c", None)
    assert [(row.reference, row.at) for row in kept] == [("", first.at), ("7", now)]
    assert {row.clients for row in kept} == {1}
    job = await replaying.replay(filter={"client_id": "shop"}, rate=10_000)
    assert (job.matching, job.done) == (2, 2)


async def test_n7_an_id_of_two_clients_is_known_as_such(replaying: Replaying) -> None:
    await replaying.store([dead("c")])
    await replaying.store([dead("c", client_id="bank")])
    assert [row.clients for row in await replaying.replays.kept("c", None)] == [2]
    [own] = await replaying.replays.kept("c", "shop")
    assert (own.client_id, own.clients) == ("shop", 1)


async def test_n7_kept_requests_are_encrypted_again_with_a_new_key(replaying: Replaying) -> None:
    new = SecretCipher([bytes(range(32)), bytes(32)])
    facts = [dead(f"c{number}", reference=str(number % 3)) for number in range(230)]
    await replaying.store([*facts, dead("c1", reference="other"), dead("c1", client_id="bank")])
    await replaying.database.execute(
        "UPDATE journal.requests SET sealed = '\\x01' WHERE callback_id = 'c7'"
    )
    for expected in (231, 0):
        async with replaying.database.transaction() as connection:
            batches = [batch async for batch in reseal(connection, new)]
        assert sum(batch.read for batch in batches) == 232
        assert sum(batch.resealed for batch in batches) == expected
        assert [fault for batch in batches for fault in batch.faults] == [
            "cannot decrypt a secret: its format is unknown"
        ]
    [row, *_] = await replaying.replays.kept("c8", "shop")
    assert SecretCipher([bytes(range(32))]).decrypt(row.sealed).startswith(b"c8\n")
