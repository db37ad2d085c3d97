"""How the queries of the scheduler would find the partitions of its tables by client.

The tables are not partitioned. The tests run the real queries on copies that are, by a hash of
`client_id`. Each query has to be declared here, and the ones that need more than one partition are
explained in docs/scaling.md.
"""

import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from deploy.local.database import Database
from services.scheduler.app import SCHEMA
from services.scheduler.store import CLAIM_DUE, CLAIM_SHARED, SQL

PAGE: Final = Path(__file__).parents[2] / "docs/scaling.md"
PARTITIONS: Final = 4
TABLES: Final = ("callback_requests", "scheduled_callbacks", "finished_callbacks")

# Contain `client_id = …`, or insert it.
BY_CLIENT: Final = {
    "insert",
    "id_by_keys",
    "id_of_client",
    "client_page",
    "group_page",
    "key_page",
}
# Read what is due, or all rows: each process would run them on its own partitions.
PER_PARTITION: Final = {
    "due",
    "due_shared",
    "due_clients",
    "claim",
    "next_due",
    "backlog",
    "secrets",
}
# Look for ids alone, at least in one of the tables.
BY_ID: Final = {
    "replace",
    "content",
    "change",
    "existing",
    "extend",
    "release",
    "lock",
    "save",
    "remove",
    "finish",
    "finished",
    "correct",
    "group_members",
    "statuses",
    "states",
    "failed_page",
    "failed_ids",
    "restart",
    "reseal",
}
# Read no table with clients.
OTHERS: Final = {
    "estimated_requests",
    "store_facts",
    "claim_facts",
    "delete_facts",
    "partitions",
    "now",
}
_TABLE: Final = re.compile(
    r"CREATE TABLE scheduler\.(?P<name>\w+) \((?P<columns>.*?)\n\)(?P<options>[^;]*);", re.DOTALL
)
_VALUES: Final[dict[str, Any]] = {
    "uuid": UUID(int=7),
    "text": "a",
    "bytea": b"a",
    "int4": 1,
    "int8": 1,
    "float8": 1.0,
    "bool": True,
}


def _partitioned(match: re.Match[str]) -> str:
    """Return the statements that create a table as partitions by client."""
    name, columns = match["name"], match["columns"]
    if name not in TABLES:
        return match[0]
    key = "" if name == "finished_callbacks" else "PRIMARY KEY (client_id, id),"
    columns = columns.replace("id uuid PRIMARY KEY", "id uuid NOT NULL")
    parts = "".join(
        f"CREATE TABLE scheduler.{name}_{number} PARTITION OF scheduler.{name}"
        f" FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number});"
        for number in range(PARTITIONS)
    )
    return f"CREATE TABLE scheduler.{name} ({key}{columns}\n) PARTITION BY HASH (client_id);{parts}"


@pytest.fixture(scope="module")
def partitioned_url(database: Database) -> Iterator[str]:
    name = "partitioned"
    yield database.create_database(name)
    database.drop_database(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connection(partitioned_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a database with partitioned copies of the tables."""
    connection = await asyncpg.connect(partitioned_url)
    await connection.execute("CREATE SCHEMA scheduler")
    for migration in SCHEMA.migrations:
        await connection.execute(_TABLE.sub(_partitioned, migration.sql))
    yield connection
    await connection.close()


def _relations(plan: Any) -> Iterator[str]:
    """Yield the tables of a plan."""
    if isinstance(plan, dict):
        if "Relation Name" in plan:
            yield plan["Relation Name"]
        for each in plan.values():
            yield from _relations(each)
    elif isinstance(plan, list):
        for each in plan:
            yield from _relations(each)


def _value(parameter: Any, number: int) -> Any:
    """Return a value for parameter `number`. Times ascend, so no interval is empty."""
    if parameter.name.startswith("timestamptz"):
        value: Any = datetime(2026, 1, number, tzinfo=UTC)
    else:
        value = _VALUES[parameter.name.removesuffix("[]")]
    return [value] if parameter.kind == "array" else value


async def _most_partitions(connection: asyncpg.Connection, sql: str) -> int:
    """Return the number of partitions of one table that a statement reads or changes."""
    statement = await connection.prepare(sql)
    values = [
        _value(each, number) for number, each in enumerate(statement.get_parameters(), start=1)
    ]
    used = set(_relations(await statement.explain(*values)))
    return max(sum(f"{table}_{number}" in used for number in range(PARTITIONS)) for table in TABLES)


def _statements(names: set[str]) -> dict[str, str]:
    """Return queries as they are run: `claim` with the scan that it continues."""
    found = {name: SQL[name] for name in names if name != "claim"}
    if "claim" in names:
        found |= {"claim": CLAIM_DUE, "claim of due_shared": CLAIM_SHARED}
    return found


def test_every_query_of_the_scheduler_declares_how_it_finds_its_partition() -> None:
    declared = [*BY_CLIENT, *PER_PARTITION, *BY_ID, *OTHERS]
    assert sorted(declared) == sorted(SQL)


@pytest.mark.asyncio(loop_scope="module")
async def test_queries_by_client_need_one_partition(connection: asyncpg.Connection) -> None:
    used = {
        name: await _most_partitions(connection, sql)
        for name, sql in _statements(BY_CLIENT).items()
    }
    # An insert finds the partition of each row when it runs.
    assert used == {**dict.fromkeys(BY_CLIENT, 1), "insert": 0}


@pytest.mark.asyncio(loop_scope="module")
async def test_queries_by_id_or_due_time_would_need_all_partitions(
    connection: asyncpg.Connection,
) -> None:
    statements = _statements(PER_PARTITION | BY_ID)
    used = {name: await _most_partitions(connection, sql) for name, sql in statements.items()}
    assert used == dict.fromkeys(statements, PARTITIONS)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_other_queries_read_no_table_with_clients(
    connection: asyncpg.Connection,
) -> None:
    for name, sql in _statements(OTHERS).items():
        assert await _most_partitions(connection, sql) == 0, name


@pytest.mark.parametrize("name", sorted(PER_PARTITION | BY_ID))
def test_the_page_about_scaling_explains_each_query_without_the_key(name: str) -> None:
    assert f"`{name}`" in PAGE.read_text()
