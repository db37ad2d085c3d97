"""Migrations on a real database, and programs that refuse to start without them."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner, Result

from services.__main__ import main
from shared.postgres.connection import StoreConnectionLostError
from shared.postgres.migrations import (
    MigrationError,
    Schema,
    SchemaMismatchError,
    migrate,
    ordered,
)
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.process.health import Health
from shared.registry import SERVICES
from tests.fakes.service import running
from tests.fakes.shop import app as shop
from tests.fakes.waiting import until

RUN_SHOP = ("-m", "tests.fakes.shop", "--metrics-port", "0")
CHECKOUT = str(Path(__file__).parents[2])


def fetch(url: str, sql: str) -> list[Any]:
    async def run_query() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(sql))
        finally:
            await connection.close()

    return asyncio.run(run_query())


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """Yield the URL of a database without a schema `shop`."""
    yield database_url
    fetch(database_url, "DROP SCHEMA IF EXISTS shop CASCADE")


@pytest.fixture
def registered_shop(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    """Register the shop as a service, and return the URL of its database."""
    monkeypatch.setitem(SERVICES, "shop", shop.SPEC)
    monkeypatch.setenv("RINGBACK_DATABASE_URL", url)
    return url


def ringback(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def table(name: str) -> str:
    return f"CREATE TABLE shop.{name} (id int)"


def test_a_schema_is_created_only_once(url: str) -> None:
    for _ in range(2):
        asyncio.run(migrate(url, shop.SCHEMA))

    assert fetch(url, queries(shop.SPEC.module)["orders"]) == [(1,)]
    applied = fetch(url, "SELECT number, name FROM shop.migrations ORDER BY number")
    assert applied == [(1, "orders"), (2, "prices")]


def test_concurrent_runs_apply_each_migration_once(url: str) -> None:
    slow = {f"000{n}_t{n}.sql": f"SELECT pg_sleep(0.1); {table(f't{n}')}" for n in (1, 2, 3)}
    schema = Schema("shop", ordered(slow))
    applied: list[str] = []

    async def all_of_them() -> None:
        await asyncio.gather(
            *(
                migrate(url, schema, applied=lambda each: applied.append(str(each)))
                for _ in range(5)
            )
        )

    asyncio.run(all_of_them())

    assert applied == ["0001_t1", "0002_t2", "0003_t3"]


def test_a_rejected_migration_is_rolled_back_and_those_before_it_stay(url: str) -> None:
    broken = {"0001_a.sql": table("a"), "0002_b.sql": f"{table('b')}; SELECT 1/0;"}

    with pytest.raises(MigrationError, match=r"0002_b of the schema shop: division by zero"):
        asyncio.run(migrate(url, Schema("shop", ordered(broken))))

    assert fetch(url, "SELECT name FROM shop.migrations") == [("a",)]
    assert fetch(url, "SELECT to_regclass('shop.b')") == [(None,)]
    fixed = broken | {"0002_b.sql": table("b")}
    asyncio.run(migrate(url, Schema("shop", ordered(fixed))))
    assert fetch(url, "SELECT * FROM shop.b") == []


def test_on_a_different_history_nothing_is_changed(url: str) -> None:
    asyncio.run(migrate(url, shop.SCHEMA))
    changed = {"0001_orders.sql": table("x"), "0002_prices.sql": "", "0003_more.sql": table("y")}

    with pytest.raises(
        SchemaMismatchError, match="0001_orders of the schema shop was changed after"
    ):
        asyncio.run(migrate(url, Schema("shop", ordered(changed))))

    assert fetch(url, "SELECT to_regclass('shop.y')") == [(None,)]


async def test_finding_a17_an_older_version_works_on_a_newer_schema(url: str) -> None:
    await migrate(url, shop.SCHEMA)
    older = Schema("shop", shop.SCHEMA.migrations[:1])

    await migrate(url, older)
    store = Database(url, name="older", health=Health(), schema=older)
    running = asyncio.create_task(store.run())
    await asyncio.wait_for(store.ready(), 20)
    assert await store.fetch("SELECT number FROM shop.migrations") == [(1,), (2,)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_finding_a17_a_migration_waits_for_a_lock_without_blocking_the_services(
    url: str,
) -> None:
    await migrate(url, shop.SCHEMA)
    files = {f"{each}.sql": each.sql for each in shop.SCHEMA.migrations}
    next_version = Schema(
        "shop", ordered(files | {"0003_next.sql": "ALTER TABLE shop.orders ADD COLUMN next text"})
    )
    idle, service = await asyncpg.connect(url), await asyncpg.connect(url)
    await service.execute("SET statement_timeout = '4 s'")  # as in the pool
    transaction = idle.transaction()
    await transaction.start()
    await idle.execute("SELECT * FROM shop.orders")

    migrating = asyncio.create_task(migrate(url, next_version))
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE relation = 'shop.orders'::regclass AND NOT granted"
    )
    for _ in range(2):  # it gives way and tries again
        await until(lambda: service.fetchval(waiting))
        await service.execute("SELECT * FROM shop.orders")  # waits behind it
    assert not migrating.done()
    await transaction.rollback()
    await asyncio.wait_for(migrating, 20)
    assert await service.fetch("SELECT next FROM shop.orders") == [(None,)]
    await idle.close()
    await service.close()


async def test_finding_a17_a_migration_that_locks_for_too_long_is_rolled_back(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.postgres.migrations.STATEMENT_TIMEOUT", 1)
    slow = Schema("shop", ordered({"0001_slow.sql": "SELECT pg_sleep(60)"}))
    with pytest.raises(MigrationError, match=r"0001_slow .* longer than 1 s\. Split it"):
        await migrate(url, slow)


def test_an_unavailable_database_is_reported_without_its_password() -> None:
    with pytest.raises(
        StoreConnectionLostError, match="no connection to postgresql://me:"
    ) as caught:
        asyncio.run(migrate("postgresql://me:canary@127.0.0.1:1/x?password=canary", shop.SCHEMA))
    assert "canary" not in str(caught.value)


def test_ringback_migrate_shows_pending_and_applied_migrations(
    registered_shop: str,
) -> None:
    pending = ringback("migrate", "--check")
    assert pending.exit_code == 1
    assert "shop: pending 0001_orders\nshop: pending 0002_prices\n" in pending.output
    assert fetch(registered_shop, "SELECT to_regclass('shop.migrations')") == [(None,)]

    done = ringback("migrate")
    assert done.exit_code == 0
    assert (
        "shop: applied 0001_orders\nshop: applied 0002_prices\nshop: up to date, 0002_prices\n"
        in done.output
    )

    checked = ringback("migrate", "--check")
    assert checked.exit_code == 0
    assert "shop: up to date, 0002_prices\n" in checked.output


def test_ringback_migrate_prints_json(registered_shop: str) -> None:  # noqa: ARG001
    names = ["0001_orders", "0002_prices"]
    results = [
        json.loads(line)
        for options in (["--check"], [], ["--check"])
        for line in ringback("migrate", *options, "--json").output.splitlines()
    ]
    assert [result for result in results if result["schema"] == "shop"] == [
        {"schema": "shop", "applied": [], "pending": names},
        {"schema": "shop", "applied": names, "pending": []},
        {"schema": "shop", "applied": [], "pending": []},
    ]


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_ringback_migrate_reports_changed_migrations(
    registered_shop: str, options: list[str]
) -> None:
    ringback("migrate")
    fetch(registered_shop, "UPDATE shop.migrations SET checksum = 'x' WHERE number = 2")

    result = ringback("migrate", *options)

    assert result.exit_code == 1
    assert (
        "migration 0002_prices of the schema shop was changed after it was applied" in result.output
    )


def test_ringback_migrate_reports_an_unavailable_database(
    registered_shop: str,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RINGBACK_DATABASE_URL", "postgresql://me:canary@127.0.0.1:1/x")
    result = ringback("migrate")
    assert result.exit_code == 1
    assert "no connection to postgresql://me:******@127.0.0.1:1/x" in result.output


def test_doctor_reports_pending_migrations(registered_shop: str) -> None:  # noqa: ARG001
    assert "ERROR  migrations: shop lacks 0001_orders, 0002_prices" in ringback("doctor").output
    ringback("migrate")
    assert "ok     migrations: shop is up to date, 0002_prices" in ringback("doctor").output


async def test_a_service_refuses_to_start_on_an_old_schema(url: str, tmp_path: Path) -> None:
    settings = {"RINGBACK_DATABASE_URL": url, "PYTHONPATH": CHECKOUT}
    with running(tmp_path, "amqp://unused/", settings, RUN_SHOP) as service:
        assert await service.exit_code() == 1
        assert service.logged("it lacks 0001_orders, 0002_prices. Run `ringback migrate`")

    await migrate(url, shop.SCHEMA)
    with running(tmp_path, "amqp://unused/", settings, RUN_SHOP) as service:
        await service.ready()
        assert await service.parts() == {"database": "ok"}


async def test_a_missing_database_is_reported_with_all_other_faults(
    tmp_path: Path,
) -> None:
    settings = {"RINGBACK_SHOP_SHELVES": "0", "PYTHONPATH": CHECKOUT}
    with running(tmp_path, "http://unused/", settings, RUN_SHOP) as service:
        assert await service.exit_code() == 2
        for fault in ("RINGBACK_SHOP_SHELVES", "RINGBACK_AMQP_URL", "RINGBACK_DATABASE_URL"):
            assert f"  {fault}: " in service.output
