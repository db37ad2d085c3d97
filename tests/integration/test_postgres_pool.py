"""The pool against a real server that is stopped, suspended, disconnected and full."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest

from deploy.local.database import Database as Server
from shared.postgres.migrations import Schema, SchemaOutdatedError, migrate, ordered
from shared.postgres.pool import (
    ACQUIRE_TIMEOUT,
    GRACE,
    IDLE_IN_TRANSACTION_TIMEOUT,
    POOL_SIZE,
    RELEASE_TIMEOUT,
    STATEMENT_TIMEOUT,
    Database,
    StoreConnectionLostError,
)
from shared.process.health import Health
from tests.fakes.waiting import until

# Seconds that a loaded machine may add to a bound.
SLACK = 2.0
SCHEMA = Schema("shop", ordered({"0001_orders.sql": "CREATE TABLE shop.orders (id int)"}))


@asynccontextmanager
async def running_pool(
    url: str, *, size: int = POOL_SIZE, schema: Schema | None = None
) -> AsyncIterator[Database]:
    """Run a pool for the length of the block."""
    store = Database(url, name="test", health=Health(), size=size, schema=schema)
    running = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def store(own_database: Server) -> AsyncIterator[Database]:
    async with running_pool(own_database.url) as pool:
        await pool.ready()
        yield pool


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def backends_in_use(store: Database) -> list[int]:
    """Use all connections at the same time, and return the PIDs of their backends."""
    rows = await asyncio.gather(
        *(store.fetchrow("SELECT pg_backend_pid() AS pid, pg_sleep(0.3)") for _ in range(POOL_SIZE))
    )
    return [row["pid"] for row in rows]


async def sleeping(store: Database, usage: str) -> tuple[asyncio.Task[None], int]:
    """Start a task with a statement of two seconds; return the task and the PID of its backend."""

    async def use() -> None:
        if usage == "statement":
            await store.fetch("SELECT pg_sleep(2)")
        else:
            async with store.transaction() as connection:
                await connection.execute("SELECT pg_sleep(2)")

    task = asyncio.create_task(use())
    query = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(2)'"
    return task, (await until(lambda: store.fetchrow(query)))["pid"]


def fault(store: Database) -> str | None:
    return store._health.fault  # noqa: SLF001 - as /readyz reports it


# Row 19
async def test_row_19_a_transaction_after_a_restart_gets_a_new_connection(
    store: Database, own_database: Server
) -> None:
    await backends_in_use(store)
    # Both calls block the loop, so the pool cannot notice that its connections ended.
    own_database.stop(immediate=True)
    own_database.start()

    async with store.transaction() as connection:
        assert await connection.fetchval("SELECT 1") == 1


# Row 19
async def test_row_19_a_lost_database_is_reported_in_bounded_time_and_reconnected(
    store: Database, own_database: Server
) -> None:
    await store.execute("CREATE TABLE kept (id int)")
    sleeping = asyncio.create_task(store.fetch("SELECT pg_sleep(3)"))
    await asyncio.sleep(0)
    await asyncio.to_thread(own_database.stop, immediate=True)
    with pytest.raises(StoreConnectionLostError):
        await sleeping
    await until(lambda: fault(store))
    started = time.monotonic()
    with pytest.raises(
        StoreConnectionLostError, match="no connection to postgresql://ringback:"
    ) as caught:
        await store.fetch("SELECT 1")
    assert time.monotonic() - started < ACQUIRE_TIMEOUT + SLACK
    assert own_database.url not in f"{caught.value} {fault(store)}"

    # A statement during the restart waits for the server.
    started = time.monotonic()
    await asyncio.to_thread(own_database.start)
    await store.execute("INSERT INTO kept VALUES (1)")
    assert await store.fetchrow("SELECT count(*) FROM kept") == (1,)
    await store.ready()
    assert fault(store) is None


async def test_a_pool_can_start_before_its_server(own_database: Server) -> None:
    await asyncio.to_thread(own_database.stop)
    async with running_pool(own_database.url) as store:
        await until(lambda: "Connect call failed" in (fault(store) or ""))
        await asyncio.to_thread(own_database.start)
        async with asyncio.timeout(5):
            await store.ready()
        await until(lambda: fault(store) is None)


# Row 20
async def test_row_20_a_suspended_idle_backend_is_replaced_before_it_is_used(
    store: Database,
) -> None:
    first, *_ = await backends_in_use(store)
    with suspended(first):
        pool = store._pool  # noqa: SLF001 - the number of its connections
        await until(lambda: pool.get_size() < POOL_SIZE, within=5)
        started = time.monotonic()
        backends = await backends_in_use(store)
    assert time.monotonic() - started < STATEMENT_TIMEOUT
    assert first not in backends
    assert fault(store) is None


# Row 20
@pytest.mark.parametrize("usage", ["statement", "transaction"])
async def test_row_20_a_caller_on_a_suspended_backend_gets_an_error_and_the_pool_recovers(
    store: Database, usage: str
) -> None:
    waiting, pid = await sleeping(store, usage)
    with suspended(pid):
        started = time.monotonic()
        with pytest.raises(StoreConnectionLostError):
            await waiting
        assert time.monotonic() - started < STATEMENT_TIMEOUT + GRACE + RELEASE_TIMEOUT + SLACK
        assert pid not in await backends_in_use(store)
        assert time.monotonic() - started < 5 + SLACK
    assert fault(store) is None


# Row 20
@pytest.mark.parametrize("usage", ["statement", "transaction"])
async def test_row_20_a_cancelled_task_does_not_wait_for_a_suspended_backend(
    store: Database, usage: str
) -> None:
    waiting, pid = await sleeping(store, usage)
    with suspended(pid):
        waiting.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert time.monotonic() - started < 2 * RELEASE_TIMEOUT + SLACK
        await backends_in_use(store)


async def test_connections_that_the_server_closes_are_replaced(
    store: Database, own_database: Server
) -> None:
    before = await backends_in_use(store)
    other = await asyncpg.connect(own_database.url)
    sleeping = asyncio.create_task(store.fetch("SELECT pg_sleep(3)"))
    query = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3)'"
    await until(lambda: other.fetchval(query))
    await other.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", before)
    with pytest.raises(StoreConnectionLostError) as lost:
        await sleeping
    assert lost.value.effect_unknown

    async with store.transaction() as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert not set(before) & set(await backends_in_use(store))
    await other.close()


async def test_a_slow_statement_is_cancelled_and_its_connection_kept(
    own_database: Server,
) -> None:
    async with running_pool(own_database.url, size=1) as store:
        pid = (await store.fetchrow("SELECT pg_backend_pid() AS pid"))["pid"]
        with pytest.raises(StoreConnectionLostError, match="timeout") as cancelled:
            await store.fetch("SELECT pg_sleep(30)")
        assert not cancelled.value.effect_unknown
        assert (await store.fetchrow("SELECT pg_backend_pid() AS pid"))["pid"] == pid


async def test_waiting_for_a_connection_is_bounded(own_database: Server) -> None:
    async with running_pool(own_database.url, size=1) as store, store.transaction():
        started = time.monotonic()
        with pytest.raises(StoreConnectionLostError, match="all 1 connections") as waited:
            await store.fetch("SELECT 1")
        assert not waited.value.effect_unknown
        assert time.monotonic() - started < ACQUIRE_TIMEOUT + SLACK
        assert fault(store) is None


async def test_a_transaction_is_rolled_back_by_any_error_of_its_body(store: Database) -> None:
    await store.execute("CREATE TABLE kept (id int PRIMARY KEY)")

    async def insert(error: BaseException | None) -> None:
        async with store.transaction() as connection:
            await connection.execute("INSERT INTO kept VALUES (1)")
            if error:
                raise error

    with pytest.raises(KeyError):
        await insert(KeyError("ours"))
    assert await store.fetch("SELECT * FROM kept") == []
    await insert(None)
    # These errors are about the statement, not about the state of the database.
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(None)
    with pytest.raises(asyncpg.UndefinedTableError):
        await store.fetch("SELECT * FROM missing")
    with pytest.raises(asyncpg.InterfaceError):
        await store.fetch("SELECT $1::int", 1, 2)
    assert await store.fetch("SELECT id FROM kept") == [(1,)]
    assert fault(store) is None


async def test_a_deadlock_can_be_retried(store: Database) -> None:
    await store.execute("CREATE TABLE kept AS SELECT generate_series(1, 2) AS id, 0 AS n")
    barrier = asyncio.Barrier(2)
    update = "UPDATE kept SET n = n + 1 WHERE id = $1"

    async def both(first: int, second: int) -> None:
        async with store.transaction() as connection:
            await connection.execute(update, first)
            await barrier.wait()
            await connection.execute(update, second)

    results = await asyncio.gather(both(1, 2), both(2, 1), return_exceptions=True)
    assert [type(result) for result in results if result] == [StoreConnectionLostError]
    assert await store.fetch("SELECT n FROM kept") == [(1,), (1,)]


# Row 18
async def test_row_18_an_idle_transaction_loses_its_locks(store: Database) -> None:
    await store.execute("CREATE TABLE kept AS SELECT 0 AS n")

    async def keep_idle() -> None:
        async with store.transaction() as connection:
            await connection.execute("UPDATE kept SET n = 1")
            free = "SELECT n FROM kept FOR UPDATE SKIP LOCKED"
            await until(lambda: store.fetch(free), IDLE_IN_TRANSACTION_TIMEOUT + SLACK)

    with pytest.raises(StoreConnectionLostError):
        await keep_idle()
    assert await store.fetch("SELECT n FROM kept") == [(0,)]


@pytest.fixture
def small_disk(own_database: Server) -> Iterator[Path]:
    """Yield a file system of 8 MiB that the server may use."""
    disk = Path("/var/tmp") / f"ringback-disk-{os.getpid()}"  # noqa: S108 - the server must reach it
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(disk)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        disk.rmdir()
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        space = disk / "space"
        space.mkdir()
        owner = Path(f"/proc/{own_database.pid}").stat()
        os.chown(space, owner.st_uid, owner.st_gid)
        yield disk
    finally:
        own_database.drop_database("ringback")
        own_database.create_database("ringback")
        own_database._query("DROP TABLESPACE IF EXISTS small")  # noqa: SLF001
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S607
        disk.rmdir()


# Row 25
async def test_row_25_a_full_disk_is_reported_and_writes_are_not_acknowledged(
    store: Database, small_disk: Path
) -> None:
    await store.execute(f"CREATE TABLESPACE small LOCATION '{small_disk / 'space'}'")
    await store.execute("CREATE TABLE kept (id int, body text) TABLESPACE small")
    (small_disk / "ballast").write_bytes(bytes(4 << 20))
    insert = (
        "INSERT INTO kept SELECT $1, string_agg(md5(i::text), '') FROM generate_series(1, 999) i"
    )
    stored: list[int] = []

    async def store_until_full() -> None:
        for number in range(1000):
            async with store.transaction() as connection:
                await connection.execute(insert, number)
            stored.append(number)

    with pytest.raises(
        StoreConnectionLostError, match="the disk of the database is full; free space"
    ):
        await store_until_full()
    assert "is full; free space" in (fault(store) or "")
    assert [row["id"] for row in await store.fetch("SELECT id FROM kept ORDER BY id")] == stored

    (small_disk / "ballast").unlink()
    assert await store.execute(insert, len(stored)) == "INSERT 0 1"
    await until(lambda: fault(store) is None)


async def test_a_pool_does_not_work_on_an_old_schema(own_database: Server) -> None:
    store = Database(own_database.url, name="test", health=Health(), schema=SCHEMA)
    with pytest.raises(SchemaOutdatedError, match=r"0001_orders\. Run `ringback migrate`"):
        await store.run()

    await migrate(own_database.url, SCHEMA)
    async with running_pool(own_database.url, schema=SCHEMA) as store:
        assert await store.fetch("SELECT * FROM shop.orders") == []
