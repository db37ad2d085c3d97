"""De-duplication and outbox on a real database, step by step, with the broker played by a list."""

import asyncio
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
from services.ingestion.domain import Received
from services.ingestion.handlers import Became, Handler
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
    ("s", "e"): rules.parsed(
        '[r]\nfrom_service = "s"\nevent = "e"\n'
        + '[[r.user_event]]\nuser_id = "{{ id }}"\ntype = "t"\nevent = {}\n' * 2,
        "rules.toml",
    )
}


class ListBroker:
    """Takes what is published, unless it is `down`; `die` is raised after it was taken."""

    def __init__(self) -> None:
        self.sent: list[OutgoingMessage] = []
        self.down = False

    async def ready(self) -> None:
        """Say that publishing is possible, as the real one believes until it fails."""

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.down:
            done.set_exception(
                PublishRefusedError("the broker refused the message: a queue is full")
            )
        else:
            self.sent.append(message)
            done.set_result(None)
        return done

    @property
    def ids(self) -> Counter[str]:
        """How often each command was published."""
        return Counter(str((each.properties.headers or {})["x-ringback-id"]) for each in self.sent)


class Forgetful(Store):
    """Its process dies between the broker's confirm and the deletion in the outbox."""

    async def delete(self, ids: Collection[UUID]) -> None:  # noqa: ARG002 - it never gets there
        raise StoreConnectionLostError("the process is dead")


class Ingestion:
    """One process of ingestion, moved step by step."""

    def __init__(self, database: Database, broker: ListBroker, store: type[Store] = Store) -> None:
        published: Any = broker
        self.now = 0.0
        self.store = store(database)
        self.outbox = Outbox(self.store, published, batch=3, steady=lambda: self.now)
        self.handler = Handler(RULES, self.store, self.outbox, SystemClock(), batch=3)
        self._running = asyncio.create_task(self.handler.run())

    async def come(self, *names: str) -> list[Became]:
        """Events of these ids come in, at once."""
        return list(
            await asyncio.gather(*(self.handler.handle(MESSAGE, _received(name)) for name in names))
        )

    async def publish(self) -> None:
        """Publish all that can be had: what is held, and then what others left."""
        for _ in range(2):
            while await self.outbox.run_once():
                pass
            self.now += 60

    async def die(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


MESSAGE = Message("m", Properties(), b"")


def _received(name: str) -> Received:
    return Received(Event(from_service="s", event="e", details={}, event_id=name), name, None)


@asynccontextmanager
async def emptied(url: str) -> AsyncIterator[Database]:
    await migrate(url, SCHEMA)
    database = Database(url, name="test", health=Health(), schema=SCHEMA)
    running = asyncio.create_task(database.run())
    try:
        await database.ready()
        await database.execute("TRUNCATE ingestion.seen, ingestion.outbox")
        yield database
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def expire_leases(database: Database) -> None:
    """Have it be later, as far as leases go."""
    await database.execute("UPDATE ingestion.outbox SET leased_until = now()")


async def rows(database: Database) -> int:
    found: int = (await database.fetchrow("SELECT count(*) AS n FROM ingestion.outbox"))["n"]
    return found


# E3: a law. Whatever comes how often, in which company, wherever processes die: every event is
# acted on, and under no other ids than if it had come once.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("come"), st.lists(st.sampled_from("abcde"), min_size=1, max_size=6)),
            st.tuples(
                st.sampled_from(["publish", "die", "die after the confirm", "refuse", "expire"]),
                st.just([]),
            ),
        ),
        max_size=12,
    )
)
def test_e3_law_every_event_is_acted_on_once_however_often_it_comes(
    database_url: str, steps: list[tuple[str, list[str]]]
) -> None:
    asyncio.run(obeys_the_law(database_url, steps))


async def obeys_the_law(url: str, steps: list[tuple[str, list[str]]]) -> None:
    broker, came, deaths = ListBroker(), Counter[str](), 0
    accepted: Counter[str] = Counter()
    async with emptied(url) as database:
        it = Ingestion(database, broker)
        for step, names in steps:
            if step == "come":
                for name, became in zip(names, await it.come(*names), strict=True):
                    came[name] += 1
                    accepted[name] += became is Became.ACCEPTED
            elif step == "publish":
                await it.publish()
            elif step == "refuse":
                broker.down = True
                await it.outbox.run_once()
                broker.down = False
            elif step == "expire":
                await expire_leases(database)
            else:
                await it.die()
                if step == "die after the confirm":
                    deaths += 1
                    it = Ingestion(database, broker, Forgetful)
                    await expire_leases(database)
                    it.now = 60.0
                    try:
                        await it.outbox.run_once()
                    except StoreConnectionLostError:
                        await it.die()
                it = Ingestion(database, broker)
        await it.publish()
        await expire_leases(database)  # of what dead processes left
        await it.publish()
        await it.die()

        assert accepted == Counter(set(came))
        assert len(broker.ids) == 2 * len(came)
        assert await rows(database) == 0
        users = Counter(m.body.split(b'"')[3].decode() for m in _different(broker.sent))
        assert users == Counter(dict.fromkeys(came, 2))
        if not deaths and "expire" not in [step for step, _ in steps]:
            assert set(broker.ids.values()) <= {1}


def _different(sent: list[OutgoingMessage]) -> list[OutgoingMessage]:
    return list({str((m.properties.headers or {})["x-ringback-id"]): m for m in sent}.values())


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Database]:
    async with emptied(database_url) as it:
        yield it


async def test_e3_two_processes_share_the_outbox_without_publishing_anything_twice(
    pool: Database,
) -> None:
    broker = ListBroker()
    first, second = Ingestion(pool, broker), Ingestion(pool, broker)
    names = [uuid4().hex for _ in range(60)]
    became = await asyncio.gather(first.come(*names), second.come(*reversed(names)))
    await expire_leases(pool)
    for it in (first, second):  # nothing in memory: both have to claim
        it.outbox._held.clear()  # noqa: SLF001 - as if another process had committed it
    await asyncio.gather(first.publish(), second.publish())
    await asyncio.gather(first.die(), second.die())

    assert Counter([*became[0], *became[1]]) == {Became.ACCEPTED: 60, Became.DUPLICATE: 60}
    assert broker.ids == Counter(dict.fromkeys(broker.ids, 1))
    assert len(broker.ids) == 120
    assert await rows(pool) == 0


async def test_e3_what_is_committed_goes_out_without_waiting_for_a_look(pool: Database) -> None:
    broker = ListBroker()
    it = Ingestion(pool, broker)
    await it.publish()  # the next look is seconds away
    publishing = asyncio.create_task(it.outbox.run())
    await it.come("a")
    async with asyncio.timeout(1.0):
        await it.outbox.drain(1.0)
    publishing.cancel()
    await it.die()
    assert len(broker.ids) == 2


async def test_e3_what_the_broker_refuses_stays_and_goes_out_later_with_its_id_and_time(
    pool: Database,
) -> None:
    broker = ListBroker()
    it = Ingestion(pool, broker)
    broker.down = True
    await it.come("a")
    await it.outbox.run_once()
    assert (broker.sent, await rows(pool)) == ([], 2)
    created = await pool.fetchrow("SELECT min(created_at) AS at FROM ingestion.outbox")
    broker.down = False
    await expire_leases(pool)
    await it.publish()
    await it.die()
    assert len(broker.ids) == 2
    assert {m.properties.timestamp for m in broker.sent} == {int(created["at"].timestamp())}


async def test_e3_a_lease_keeps_others_away_until_it_ends(pool: Database) -> None:
    broker = ListBroker()
    dead, other = Ingestion(pool, broker), Ingestion(pool, broker)
    await dead.come("a")
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


async def test_e3_keys_are_kept_for_the_retention_and_no_longer(pool: Database) -> None:
    it = Ingestion(pool, ListBroker())
    await it.come("old", "young")
    await pool.execute(
        "UPDATE ingestion.seen SET seen_at = now() - interval '7 days 1 hour' WHERE key = $1",
        _received("old").key,
    )
    retention = Retention(it.store, timedelta(days=7))
    assert (await retention.run_once(), await retention.run_once()) == (1, 0)
    assert await it.come("old", "young") == [Became.ACCEPTED, Became.DUPLICATE]
    await it.die()


async def test_e3_an_event_without_commands_is_accepted_once(pool: Database) -> None:
    store = Store(pool)
    published: Any = ListBroker()
    outbox = Outbox(store, published, batch=3, steady=lambda: 0.0)
    nothing = {
        ("auth", "user_signed_up"): rules.parsed(
            "[r]\nfrom_service = 'auth'\nevent = 'user_signed_up'", "rules.toml"
        )
    }
    handler = Handler(nothing, store, outbox, SystemClock(), batch=3)
    running = asyncio.create_task(handler.run())
    model = Received(Event(**KNOWN_EVENTS[0]), "1", None)
    became = [await handler.handle(MESSAGE, model), await handler.handle(MESSAGE, model)]
    running.cancel()
    assert became == [Became.ACCEPTED, Became.DUPLICATE]
