"""N6: a journal that is down costs delivery nothing, and beyond the backlog a gap is shown."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.fakes.broker_client import BrokerClient, broker_client, send_callback
from tests.fakes.gateway import Caller
from tests.fakes.journal import declared, fact_publisher
from tests.fakes.receivers import Receiver, respond, serve
from tests.fakes.service import Service, running
from tests.fakes.system import SECRETS_KEY, System, fresh_database, system
from tests.fakes.waiting import until

RUN_JOURNAL = ("-m", "services", "run", "journal", "--metrics-port", "0")
BACKLOG = 1000  # the smallest
# The stream has room for facts of 2,048 bytes, and for two segments of 1 MiB in addition.
KEPT_BYTES = BACKLOG * 2048
# Characters with which a fact takes 1.9 kB.
TEXT = "x" * 700
# Larger facts, as with large payloads. So fewer of them exceed the stream twice.
BEYOND = 1500
LONG_TEXT = "x" * 4000
# The messages without facts that RabbitMQ writes into the stream: one for each segment.
MAX_RECORDS = 10
STORED = "SELECT callback_id FROM journal.entries WHERE kind = 'attempt'"


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as url:
        yield url


@pytest.fixture
def services(amqp_url: str, url: str, tmp_path: Path) -> Iterator[System]:
    kept = {"RINGBACK_JOURNAL_BODIES": "all"}
    with system(tmp_path, amqp_url, url, "callback", **kept) as started:
        yield started


@pytest.fixture
async def call(services: System, amqp_url: str) -> AsyncIterator[Caller]:
    await services.ready()
    async with fact_publisher(amqp_url, declared(BACKLOG)):
        pass  # the stream is declared, as by a journal before its failure
    async with services.calling() as call:
        yield call


@contextmanager
def journal(services: System, amqp_url: str, url: str, directory: Path) -> Iterator[Service]:
    """Run a journal beside the other services."""
    settings = {
        "RINGBACK_DATABASE_URL": url,
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
        "RINGBACK_JOURNAL_BACKLOG": str(BACKLOG),
    }
    assert services
    with running(directory, amqp_url, settings, RUN_JOURNAL) as started:
        yield started


async def deliver(client: BrokerClient, receiver: Receiver, count: int, text: str) -> list[str]:
    """Deliver callbacks, and return their ids in the order of their facts."""
    before = len(client.facts)
    for _ in range(count // 500):
        bodies = (send_callback(receiver.url, payload={"text": text}) for _ in range(500))
        await client.send_all(bodies)
    await until(lambda: len(client.facts) >= before + count)
    return [fact["callback_id"] for fact in client.facts[before:]]


async def stored(url: str, last: str) -> Counter[str]:
    """Return the callbacks in the journal, once the last one is there."""
    connection = await asyncpg.connect(url)

    async def read() -> Counter[str] | None:
        found = Counter(row["callback_id"] for row in await connection.fetch(STORED))
        return found if last in found else None

    try:
        found: Counter[str] = await until(read, 60)
    finally:
        await connection.close()
    return found


async def test_n6_beyond_the_backlog_the_oldest_facts_are_a_gap_and_delivery_is_untouched(
    services: System, call: Caller, amqp_url: str, url: str, tmp_path: Path
) -> None:
    async with serve(respond()) as receiver, broker_client(amqp_url) as client:
        within = await deliver(client, receiver, BACKLOG, TEXT)
        with journal(services, amqp_url, url, tmp_path):
            assert await stored(url, within[-1]) == Counter(within)
            story = (await call("GET", f"/v1/callbacks/{within[0]}/timeline")).json
        assert story["gaps"] == []

        beyond = await deliver(client, receiver, BEYOND, LONG_TEXT)
        with journal(services, amqp_url, url, tmp_path) as restarted:
            found = await stored(url, beyond[-1])
            story = (await call("GET", f"/v1/callbacks/{within[0]}/timeline")).json
            [gap] = story["gaps"]
            counter = "ringback_journal_missed_messages_total"
            assert await restarted.metric_reaches(gap["messages"], counter) == gap["messages"]
            (await call("GET", f"/v1/callbacks/{beyond[0]}/timeline")).problem(404)
        oldest = next(number for number, id_ in enumerate(beyond) if id_ in found)
        assert found == Counter([*within, *beyond[oldest:]])
        assert oldest > 0
        assert gap["reason"] == "backlog_exceeded"
        # Messages are dropped as a whole: the first one of this round, and the first one kept.
        begins = [json.loads(each.body)["facts"][0]["callback_id"] for each in client.fact_messages]
        first, kept = begins.index(beyond[0]), begins.index(beyond[oldest])
        assert 0 <= gap["messages"] - (kept - first) <= MAX_RECORDS
        assert sum(len(message.body) for message in client.fact_messages[kept:]) >= KEPT_BYTES

    arrivals = Counter(request.headers["webhook-id"] for request in receiver.requests)
    assert arrivals == Counter([*within, *beyond])
    assert {(fact["type"], fact["attempt"]) for fact in client.facts} == {("callback.delivered", 1)}
    assert not services["callback"].logged("is not ready")
    assert not services["callback"].logged("publish retried")
