"""The pool and the commands with a primary and a standby: they use the one that accepts writes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from services.__main__ import main
from shared.postgres.connection import StoreConnectionLostError
from shared.postgres.pool import POOL_SIZE, Database
from shared.process.health import Health
from tests.fakes.replication import Pair, replicated
from tests.fakes.waiting import until


@pytest.fixture
def pair(stack_directory: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    with replicated(stack_directory / f"pair-{abs(hash(request.node.name))}") as servers:
        yield servers


@asynccontextmanager
async def running_pool(url: str, size: int = POOL_SIZE) -> AsyncIterator[Database]:
    store = Database(url, name="test", health=Health(), size=size)
    running = asyncio.create_task(store.run())
    try:
        await asyncio.wait_for(store.ready(), 20)
        yield store
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextmanager
def silent_host() -> Iterator[str]:
    """Yield an address that accepts connections, but never responds: a host that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def fault(store: Database) -> str | None:
    return store._health.fault  # noqa: SLF001 - as /readyz reports it


async def port_of(store: Database) -> int:
    return int((await store.fetchrow("SELECT inet_server_port()"))[0])


async def test_n11_a_pool_follows_the_promotion_and_never_uses_a_read_only_server(
    pair: Pair,
) -> None:
    await until(pair.in_sync)
    async with running_pool(pair.url) as store:
        await store.execute("CREATE TABLE kept (id int)")
        await store.execute("INSERT INTO kept VALUES (1)")
        await asyncio.to_thread(pair.kill_primary)
        await until(lambda: "the server is read-only" in str(fault(store)))
        with pytest.raises(StoreConnectionLostError, match=r"no connection to .*:\*{6}@"):
            await store.execute("INSERT INTO kept VALUES (2)")

        await asyncio.to_thread(pair.promote)
        await until(lambda: store.execute("INSERT INTO kept VALUES (3)"))
        assert await store.fetch("SELECT id FROM kept ORDER BY id") == [(1,), (3,)]

        await asyncio.to_thread(pair.return_as_standby)
        ports = await asyncio.gather(*(port_of(store) for _ in range(20)))
        assert f":{set(ports).pop()}/" in pair.standby.url
        assert len(set(ports)) == 1
    async with running_pool(pair.url) as store:
        assert f":{await port_of(store)}/" in pair.standby.url


async def test_n11_a_connection_to_a_server_that_became_read_only_is_replaced(
    database_url: str,
) -> None:
    async with running_pool(database_url, size=1) as store:
        await store.execute("SET default_transaction_read_only = on")
        with pytest.raises(StoreConnectionLostError, match="read-only") as lost:
            await store.execute("CREATE TABLE kept (id int)")
        assert not lost.value.effect_unknown
        assert await store.execute("CREATE TEMP TABLE kept (id int)") == "CREATE TABLE"


async def test_n11_a_host_that_never_responds_delays_nobody(database_url: str) -> None:
    before, at, after = database_url.rpartition("@")
    with silent_host() as silent:
        async with running_pool(f"{before}{at}{silent},{after}") as store:
            assert await store.fetchrow("SELECT 1") == (1,)


def test_n11_the_commands_accept_several_hosts_and_show_no_password(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGBACK_DATABASE_URL", f"{pair.url}?target_session_attrs=read-write")
    migrated = CliRunner().invoke(main, ["migrate"])
    assert migrated.exit_code == 0, migrated.output
    checked = CliRunner().invoke(main, ["doctor"])
    assert "ok     migrations: scheduler is up to date" in checked.output

    pair.kill_primary()
    failed = CliRunner().invoke(main, ["migrate"])
    assert failed.exit_code == 1
    assert "the server is read-only" in failed.output
    assert "Connect call failed" in failed.output
    assert str(urlsplit(pair.primary.url).password) not in (
        migrated.output + checked.output + failed.output
    )
