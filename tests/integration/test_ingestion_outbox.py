"""Deduplication and the outbox on a real database, step by step, with a fake broker."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ingestion import rules
from services.ingestion.app import SCHEMA
from services.ingestion.domain import EventOutcome, ReceivedEvent
from services.ingestion.handlers import Handler
from services.ingestion.outbox import LEASE, Outbox
from services.ingestion.retention import Retention
from services.ingestion.store import Store
from shared.amqp.codec import Properties
from shared.amqp.message import Message
from shared.amqp.publisher import OutgoingMessage, PublishRefusedError
from shared.clock import SystemClock
from shared.contracts.events import Event
from shared.postgres.migrations import migrate
from shared.postgres.pool import Database, StoreConnectionLostError
from shared.process.health import Health
from tests.fakes.ingesting import KNOWN_EVENTS

RULES = {
    ("s", "e"): rules.parse(
        '[r]\nfrom_service = "s"\nevent = "e"\n'
        + '[[r.user_event]]\nuser_id = 7\ntype = "{{ id }}"\nevent = {}\n' * 2,
        "rules.toml",
    )
}


class FakeBroker:
    """Confirms and stores every message, unless `refuses_all` is set."""

    def __init__(self) -> None:
        self.sent: list[OutgoingMessage] = []
        self.refuses_all = False

    async def ready(self) -> None:
        """Return at once: publishing is possible."""

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.refuses_all:
            done.set_exception(
                PublishRefusedError("the broker refused the message: a queue is full")
            )
        else:
            self.sent.append(message)
            done.set_result(None)
        return done

    @property
    def ids(self) -> Counter[str]:
        """Return the number of publications of each command."""
        return Counter(str((each.properties.headers or {})["x-ringback-id"]) for each in self.sent)


class DyingStore(Store):
    """Its process dies between the broker's confirmation and the deletion in the outbox."""

    async def delete(self, ids: Collection[UUID]) -> None:  # noqa: ARG002 - always fails
        raise StoreConnectionLostError("the process is dead")


class Ingestion:
    """One process of ingestion that runs step by step."""

    def __init__(self, database: Database, broker: FakeBroker, store: type[Store] = Store) -> None:
        published: Any = broker
        self.now = 0.0
        self.store = store(database)
        self.outbox = Outbox(self.store, published, batch=3, monotonic=lambda: self.now)
        self.handler = Handler(RULES, self.store, self.outbox, SystemClock(), batch=3)
        self._running = asyncio.create_task(self.handler.run())

    async def receive(self, *names: str) -> list[EventOutcome]:
        """Handle events with these ids at the same time."""
        return list(
            await asyncio.gather(*(self.handler.handle(MESSAGE, _received(name)) for name in names))
        )

    async def publish(self) -> None:
        """Publish the held commands, then those with expired leases."""
        for _ in range(2):
            while await self.outbox.run_once():
                pass
            self.now += 60

    async def die(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


MESSAGE = Message("m", Properties(), b"")


def _received(name: str) -> ReceivedEvent:
    return ReceivedEvent(Event(from_service="s", event="e", details={}, event_id=name), name, None)


@asynccontextmanager
async def empty_database(url: str) -> AsyncIterator[Database]:
    await migrate(url, SCHEMA)
    database = Database(url, name="test", health=Health(), schema=SCHEMA)
    running = asyncio.create_task(database.run())
    try:
        await database.ready()
        await database.execute("TRUNCATE ingestion.seen_events, ingestion.outbox")
        yield database
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def expire_leases(database: Database) -> None:
    """Let all leases expire."""
    await database.execute("UPDATE ingestion.outbox SET leased_until = now()")


async def rows(database: Database) -> int:
    found: int = (await database.fetchrow("SELECT count(*) AS n FROM ingestion.outbox"))["n"]
    return found


# E3: each event is accepted once, however often it is received and whenever processes die. Its
# commands have the same ids as without failures.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("receive"), st.lists(st.sampled_from("abcde"), min_size=1, max_size=6)
            ),
            st.tuples(
                st.sampled_from(["publish", "die", "die after the confirm", "refuse", "expire"]),
                st.just([]),
            ),
        ),
        max_size=12,
    )
)
def test_e3_property_every_event_is_accepted_exactly_once(
    database_url: str, steps: list[tuple[str, list[str]]]
) -> None:
    asyncio.run(check_property(database_url, steps))


async def check_property(url: str, steps: list[tuple[str, list[str]]]) -> None:
    broker, received, deaths = FakeBroker(), Counter[str](), 0
    accepted: Counter[str] = Counter()
    async with empty_database(url) as database:
        process = Ingestion(database, broker)
        for step, names in steps:
            if step == "receive":
                for name, outcome in zip(names, await process.receive(*names), strict=True):
                    received[name] += 1
                    accepted[name] += outcome is EventOutcome.ACCEPTED
            elif step == "publish":
                await process.publish()
            elif step == "refuse":
                broker.refuses_all = True
                await process.outbox.run_once()
                broker.refuses_all = False
            elif step == "expire":
                await expire_leases(database)
            else:
                await process.die()
                if step == "die after the confirm":
                    deaths += 1
                    process = Ingestion(database, broker, DyingStore)
                    await expire_leases(database)
                    process.now = 60.0
                    try:
                        await process.outbox.run_once()
                    except StoreConnectionLostError:
                        await process.die()
                process = Ingestion(database, broker)
        await process.publish()
        await expire_leases(database)  # of dead processes
        await process.publish()
        await process.die()

        assert accepted == Counter(set(received))
        assert len(broker.ids) == 2 * len(received)
        assert await rows(database) == 0
        types = Counter(json.loads(m.body)["type"] for m in _different(broker.sent))
        assert types == Counter(dict.fromkeys(received, 2))
        if not deaths and "expire" not in [step for step, _ in steps]:
            assert set(broker.ids.values()) <= {1}


def _different(sent: list[OutgoingMessage]) -> list[OutgoingMessage]:
    return list({str((m.properties.headers or {})["x-ringback-id"]): m for m in sent}.values())


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Database]:
    async with empty_database(database_url) as process:
        yield process


async def test_e3_two_processes_share_the_outbox_without_duplicates(
    pool: Database,
) -> None:
    broker = FakeBroker()
    first, second = Ingestion(pool, broker), Ingestion(pool, broker)
    names = [uuid4().hex for _ in range(60)]
    outcome = await asyncio.gather(first.receive(*names), second.receive(*reversed(names)))
    await expire_leases(pool)
    for process in (first, second):  # nothing in memory, so both have to claim
        process.outbox._held.clear()  # noqa: SLF001 - as if another process had committed it
    await asyncio.gather(first.publish(), second.publish())
    await asyncio.gather(first.die(), second.die())

    assert Counter([*outcome[0], *outcome[1]]) == {
        EventOutcome.ACCEPTED: 60,
        EventOutcome.DUPLICATE: 60,
    }
    assert broker.ids == Counter(dict.fromkeys(broker.ids, 1))
    assert len(broker.ids) == 120
    assert await rows(pool) == 0


async def test_e3_committed_commands_are_published_without_waiting_for_a_poll(
    pool: Database,
) -> None:
    broker = FakeBroker()
    process = Ingestion(pool, broker)
    await process.publish()  # the next poll is seconds away
    publishing = asyncio.create_task(process.outbox.run())
    await process.receive("a")
    async with asyncio.timeout(1.0):
        await process.outbox.drain(1.0)
    publishing.cancel()
    await process.die()
    assert len(broker.ids) == 2


async def test_e3_a_refused_command_is_published_later_with_the_same_id_and_time(
    pool: Database,
) -> None:
    broker = FakeBroker()
    process = Ingestion(pool, broker)
    broker.refuses_all = True
    await process.receive("a")
    await process.outbox.run_once()
    assert (broker.sent, await rows(pool)) == ([], 2)
    created = await pool.fetchrow("SELECT min(created_at) AS at FROM ingestion.outbox")
    broker.refuses_all = False
    await expire_leases(pool)
    await process.publish()
    await process.die()
    assert len(broker.ids) == 2
    assert {m.properties.timestamp for m in broker.sent} == {int(created["at"].timestamp())}


async def test_e3_other_processes_publish_only_after_the_lease_expires(pool: Database) -> None:
    broker = FakeBroker()
    dead, other = Ingestion(pool, broker), Ingestion(pool, broker)
    await dead.receive("a")
    await dead.die()
    await other.publish()
    assert not broker.sent
    await pool.execute(
        "UPDATE ingestion.outbox SET leased_until = leased_until - make_interval(secs => $1)",
        LEASE,
    )
    await other.publish()
    await other.die()
    assert len(broker.ids) == 2


async def test_e3_keys_are_deleted_after_the_retention(pool: Database) -> None:
    process = Ingestion(pool, FakeBroker())
    await process.receive("old", "recent")
    await pool.execute(
        "UPDATE ingestion.seen_events SET seen_at = now() - interval '169 hours' WHERE key = $1",
        _received("old").key,
    )
    retention = Retention(process.store, timedelta(days=7))
    assert (await retention.run_once(), await retention.run_once()) == (1, 0)
    assert await process.receive("old", "recent") == [EventOutcome.ACCEPTED, EventOutcome.DUPLICATE]
    await process.die()


async def test_e3_an_event_without_commands_is_accepted_once(pool: Database) -> None:
    store = Store(pool)
    published: Any = FakeBroker()
    outbox = Outbox(store, published, batch=3, monotonic=lambda: 0.0)
    rules_without_commands = {
        ("auth", "user_signed_up"): rules.parse(
            "[r]\nfrom_service = 'auth'\nevent = 'user_signed_up'", "rules.toml"
        )
    }
    handler = Handler(rules_without_commands, store, outbox, SystemClock(), batch=3)
    running = asyncio.create_task(handler.run())
    model = ReceivedEvent(Event(**KNOWN_EVENTS[0]), "1", None)
    outcome = [await handler.handle(MESSAGE, model), await handler.handle(MESSAGE, model)]
    running.cancel()
    assert outcome == [EventOutcome.ACCEPTED, EventOutcome.DUPLICATE]
