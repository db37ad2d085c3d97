"""Several delivery processes share the ids of sent messages and the rates of providers."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.delivery.app import SCHEMA
from services.delivery.claims import (
    CLAIM_INTERVAL,
    LEASE,
    RECORD_INTERVAL,
    Claim,
    Claims,
    claim_id,
)
from services.delivery.domain import Rate
from services.delivery.store import SQL, Store
from shared.errors import DeferredError, InfrastructureError
from shared.postgres.pool import Database, StoreConnectionLostError
from shared.process.health import Health
from shared.registry import BULK, URGENT
from tests.fakes.delivering import delivery_database
from tests.fakes.waiting import until


@pytest.fixture
async def store_database(database_url: str) -> AsyncIterator[Database]:
    url = await delivery_database(database_url)
    database = Database(url, name="test", health=Health(), schema=SCHEMA)
    running = asyncio.create_task(database.run())
    await database.ready()
    await database.execute("TRUNCATE delivery.messages, delivery.processes, delivery.providers")
    yield database
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Process:
    """The claims of one process."""

    def __init__(self, database: Database) -> None:
        self.shares: Mapping[str, int] = {}
        self.claims = Claims(
            Store(database),
            ["smtp://x:25"],
            retention=3600,
            monotonic=time.monotonic,
            observe=self.observe,
        )

    def observe(self, shares: Mapping[str, int]) -> None:
        self.shares = shares


@asynccontextmanager
async def process(database: Database) -> AsyncIterator[Process]:
    """Run the claims of a process during the block, then kill it."""
    started = Process(database)
    running = asyncio.create_task(started.claims.run())
    try:
        yield started
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def expire_leases(database: Database) -> None:
    """Let the leases of all processes expire."""
    await database.execute("UPDATE delivery.processes SET alive_until = now()")


async def test_finding_c2_a_message_is_sent_by_one_process_and_never_again(
    store_database: Database,
) -> None:
    id_ = claim_id("email", uuid4().hex)
    async with process(store_database) as one, process(store_database) as other:
        claim = await one.claims.claim(id_)
        with pytest.raises(DeferredError, match="another process"):
            await other.claims.claim(id_)
        one.claims.check(claim)
        recorded: list[None] = []
        await one.claims.record(claim, 0.25, lambda: recorded.append(None))
        assert len(recorded) == 1
        assert (await other.claims.claim(id_)).sent == 0.25
        assert (await one.claims.claim(id_)).sent == 0.25
    async with process(store_database) as later:  # the id outlives its process
        assert (await later.claims.claim(id_)).sent == 0.25


async def test_finding_c2_a_message_that_was_not_sent_can_be_sent_by_another_process(
    store_database: Database,
) -> None:
    id_ = claim_id("email", uuid4().hex)
    async with process(store_database) as one, process(store_database) as other:
        one.claims.release(await one.claims.claim(id_))

        async def claimed() -> Claim | None:
            try:
                return await other.claims.claim(id_)
            except DeferredError:  # not released yet
                return None

        claim = await until(claimed)
        assert claim.sent is None
        await other.claims.close()  # a process that stops gives up its claims
        assert (await one.claims.claim(id_)).sent is None
        with pytest.raises(InfrastructureError):
            other.claims.check(claim)


async def test_finding_c2_a_late_release_does_not_remove_a_newer_claim_of_the_same_process(
    store_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the message arrives while the claim of the first one is given up."""
    id_ = claim_id("email", uuid4().hex)
    release, releasing, go_on = Store.release, asyncio.Event(), asyncio.Event()

    async def late(store: Store, number: int, messages: Sequence[UUID]) -> None:
        releasing.set()
        await go_on.wait()
        await release(store, number, messages)

    monkeypatch.setattr(Store, "release", late)
    async with process(store_database) as one, process(store_database) as other:
        one.claims.release(await one.claims.claim(id_))
        await releasing.wait()
        again = asyncio.create_task(one.claims.claim(id_))
        await asyncio.wait([again], timeout=0.5)  # without the release, it takes milliseconds
        go_on.set()
        claim = await again
        with pytest.raises(DeferredError, match="another process"):
            await other.claims.claim(id_)
        await one.claims.record(claim, 0.25, lambda: None)
        assert (await other.claims.claim(id_)).sent == 0.25


async def test_finding_c2_a_process_that_stops_records_what_it_could_not_record_before(
    store_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = claim_id("email", uuid4().hex)

    async def unavailable(*_: object) -> None:
        raise StoreConnectionLostError("the connection is lost")

    async with process(store_database) as one, process(store_database) as other:
        claim = await one.claims.claim(id_)
        with monkeypatch.context() as patched:
            patched.setattr(Store, "record", unavailable)
            with pytest.raises(StoreConnectionLostError):
                await one.claims.record(claim, 0.25, lambda: None)
        await one.claims.close()
        assert (await other.claims.claim(id_)).sent == 0.25


async def test_finding_c2_a_killed_process_loses_its_claims_and_a_suspended_one_cannot_use_them(
    store_database: Database,
) -> None:
    id_ = claim_id("email", uuid4().hex)
    async with process(store_database) as suspended, process(store_database) as other:
        claim = await suspended.claims.claim(id_)
        await until(lambda: suspended.shares and other.shares)
        await expire_leases(store_database)
        await other.claims.renew()
        taken = await other.claims.claim(id_)
        assert taken.sent is None
        await suspended.claims.renew()
        with pytest.raises(InfrastructureError, match="expired"):
            suspended.claims.check(claim)
        other.claims.check(taken)
        with pytest.raises(DeferredError):
            await suspended.claims.claim(id_)
    assert LEASE <= 15, "messages of a killed process are sent within 30 s"


async def test_finding_c2_many_claims_of_two_processes_never_overlap(
    store_database: Database,
) -> None:
    ids = [claim_id("email", uuid4().hex) for _ in range(500)]
    async with process(store_database) as one, process(store_database) as other:
        results = await asyncio.gather(
            *(each.claims.claim(id_) for id_ in ids for each in (one, other)),
            return_exceptions=True,
        )
    claimed = [result for result in results if not isinstance(result, BaseException)]
    assert len(claimed) == len(ids)
    assert {claim.id for claim in claimed} == set(ids)
    assert all(isinstance(r, DeferredError) for r in results if isinstance(r, BaseException))


async def test_finding_c2_messages_in_a_row_share_their_statements(
    store_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement for each message would cost as much CPU as the rest of its delivery."""
    statements = {"claim": 0, "record": 0}
    claim, record = Store.claim, Store.record

    async def counted_claim(store: Store, *arguments: Any) -> Any:
        statements["claim"] += 1
        return await claim(store, *arguments)

    async def counted_record(store: Store, *arguments: Any) -> None:
        statements["record"] += 1
        await record(store, *arguments)

    monkeypatch.setattr(Store, "claim", counted_claim)
    monkeypatch.setattr(Store, "record", counted_record)
    async with process(store_database) as one:
        began = time.monotonic()

        async def send(number: int) -> None:
            await asyncio.sleep(number / 5000)  # 5,000 messages a second, not a burst
            claimed = await one.claims.claim(claim_id("email", uuid4().hex))
            await one.claims.record(claimed, 0.1, lambda: None)

        await asyncio.gather(*map(send, range(1000)))
        elapsed = time.monotonic() - began
    assert statements["claim"] <= elapsed / CLAIM_INTERVAL + 2
    assert statements["record"] <= elapsed / RECORD_INTERVAL + 2


async def test_finding_c2_claiming_and_recording_use_the_index_in_a_growing_table(
    store_database: Database,
) -> None:
    """PostgreSQL knows nothing about the rows that were added since the last ANALYZE."""
    store = Store(store_database)
    worker = await store.register([], LEASE)
    ids = [uuid4() for _ in range(2000)]
    await store.claim(worker, ids)
    durations = [0.1] * 20
    for name, arguments in (("claim", (worker, ids[:20])), ("record", (ids[:20], durations))):
        plan = "\n".join(
            row[0] for row in await store_database.fetch(f"EXPLAIN {SQL[name]}", *arguments)
        )
        assert "Seq Scan on messages" not in plan, plan


async def test_n9_finding_c5_live_processes_are_counted_for_each_provider(
    store_database: Database,
) -> None:
    async with process(store_database) as one, process(store_database) as other:
        await until(lambda: one.shares and other.shares)
        await other.claims.renew()
        assert other.shares == {"smtp://x:25": 2}
        await other.claims.close()
        await one.claims.renew()
        assert one.shares == {"smtp://x:25": 1}


async def test_finding_c2_old_ids_are_deleted_in_batches(store_database: Database) -> None:
    store = Store(store_database)
    worker = await store.register([], LEASE)
    ids = [uuid4() for _ in range(30)]
    await store.claim(worker, ids)
    await store_database.execute(
        "UPDATE delivery.messages SET claimed_at = now() - interval '2 hours' WHERE id = ANY ($1)",
        ids[:25],
    )
    assert [await store.delete_old(3600, 10) for _ in range(4)] == [10, 10, 5, 0]
    assert (await store.claim(await store.register([], LEASE), ids)).keys() == set(ids[25:])


async def test_n9_finding_c5_processes_together_keep_the_rate_of_a_provider(
    store_database: Database,
) -> None:
    rate, provider, seconds = Rate(50.0, 10.0), "smtp://rate:25", 2.0
    taken = {URGENT: 0, BULK: 0}

    async def take(wanted: dict[str, int]) -> None:
        store = Store(store_database)
        while time.monotonic() < end:
            grant = await store.take_tokens(provider, rate, wanted)  # type: ignore[arg-type]
            taken[URGENT if wanted[URGENT] else BULK] += grant.tokens
            await asyncio.sleep(min(grant.delay, end - time.monotonic()) if grant.delay else 0)

    started = time.monotonic()
    end = started + seconds
    await asyncio.gather(
        *(take({URGENT: 0, BULK: 20}) for _ in range(3)), take({URGENT: 1, BULK: 0})
    )
    elapsed = time.monotonic() - started
    assert sum(taken.values()) <= rate.burst + rate.per_second * elapsed
    assert sum(taken.values()) > rate.burst
    assert taken[URGENT] > 0


async def test_finding_c19_a_sent_message_is_recorded_without_a_change_of_an_index(
    store_database: Database,
) -> None:
    ids = [uuid4() for _ in range(1000)]
    async with store_database.transaction() as connection:
        await connection.fetch(SQL["claim"], 1, ids)
        # Half of the messages on each page: more find no room before earlier versions are removed.
        await connection.execute(SQL["record"], ids[::2], [0.1] * 500)
        # Updates that changed no index ("heap-only"), of this transaction.
        count = "pg_stat_get_xact_tuples_hot_updated('delivery.messages'::regclass)"
        assert await connection.fetchval(f"SELECT {count}") == 500
