"""Migrations of a service's schema, in files `sql/migrations/0001_name.sql`.

They are numbered from 1 without a gap, and forward-only. Each one is a transaction together with
its row in the schema's table `migrations`. The row has a checksum: an applied file never changes.
During an upgrade, services of the previous version work on the new schema, so a schema may have
migrations that this version does not know.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import asyncpg
import backoff

from shared.errors import RingbackError
from shared.postgres.connection import DATABASE_ERRORS, connect

# Seconds that a migration waits for a lock. Statements of services on that table wait behind it,
# and their limit is 4 s.
LOCK_TIMEOUT: Final = 2
# Seconds in which a migration is repeated because of a lock.
MAX_LOCK_WAIT: Final = 60
# Seconds for one statement of a migration. Those that take longer than a moment lock no table.
STATEMENT_TIMEOUT: Final = 300

_FILE: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_SCHEMA: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a schema's history."""

    number: int
    name: str
    sql: str

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of the file, for any line endings."""
        return hashlib.sha256("\n".join(self.sql.splitlines()).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Schema:
    """A service's schema in the database: its name and its migrations."""

    name: str
    migrations: tuple[Migration, ...]

    @classmethod
    def of(cls, package: str) -> "Schema":
        """Return the schema of a package: `Schema.of("services.scheduler")` is `scheduler`.

        Raises:
            ValueError: a migration has an invalid name or number.
        """
        return cls(package.rpartition(".")[2], migrations(package))

    def __post_init__(self) -> None:
        if not _SCHEMA.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a valid schema name")


class SchemaOutdatedError(RingbackError):
    """The schema lacks migrations."""

    def __init__(self, schema: Schema, missing: tuple[Migration, ...]) -> None:
        names = ", ".join(map(str, missing))
        super().__init__(
            f"Cannot use the schema {schema.name}: it lacks {names}. Run `ringback migrate`."
        )


class SchemaMismatchError(RingbackError):
    """The applied migrations differ from the files; `faults` names each difference."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class MigrationError(RingbackError):
    """PostgreSQL rejected a migration. It was rolled back; the migrations before it stay."""


def migrations(package: str) -> tuple[Migration, ...]:
    """Return the migrations of a service's package, in order.

    Raises:
        ValueError: a file has an invalid name or number.
    """
    folder = resources.files(package).joinpath("sql", "migrations")
    return ordered(
        {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}
    )


def ordered(files: Mapping[str, str]) -> tuple[Migration, ...]:
    """Return the migrations in these files, in order.

    Raises:
        ValueError: a name is invalid, a number is missing or not unique, or `files` is empty.
    """
    found = []
    for file, sql in sorted(files.items()):
        match = _FILE.fullmatch(file)
        if match is None:
            raise ValueError(f"{file!r} is not a valid migration name; name it like 0001_first.sql")
        found.append(Migration(int(match[1]), match[2], sql))
    numbers = [migration.number for migration in found]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"migrations must be numbered 0001, 0002, …; these are {numbers}")
    return tuple(found)


def missing(schema: Schema, applied: Mapping[int, tuple[str, str]]) -> tuple[Migration, ...]:
    """Return the migrations that are not applied. `applied` maps number to (name, checksum).

    Raises:
        SchemaMismatchError: the applied migrations differ from the files.
    """
    known = {migration.number: migration for migration in schema.migrations}
    faults = []
    for number, (name, checksum) in sorted(applied.items()):
        label = f"migration {number:04}_{name} of the schema {schema.name}"
        if number not in known:  # of a newer version, which keeps the schema usable for this one
            continue
        if known[number].name != name:
            faults.append(
                f"{label} is named {known[number]} in this version: do not rename migrations"
            )
        elif known[number].checksum != checksum:
            faults.append(f"{label} was changed after it was applied: restore the file")
    lacking = tuple(migration for migration in schema.migrations if migration.number not in applied)
    faults += [
        f"migration {migration} of the schema {schema.name} was not applied, but later ones were:"
        " restore the table `migrations`"
        for migration in lacking
        if applied and migration.number < max(applied)
    ]
    if faults:
        raise SchemaMismatchError(tuple(faults))
    return lacking


async def pending(connection: Any, schema: Schema) -> tuple[Migration, ...]:
    """Return the migrations that are not applied in a database; change nothing.

    Raises:
        SchemaMismatchError: the applied migrations differ, or cannot be read.
        DATABASE_ERRORS: the database is unavailable.
    """
    table = f"{schema.name}.migrations"
    try:
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            return schema.migrations
        rows = await connection.fetch(f"SELECT number, name, checksum FROM {table}")  # noqa: S608 - the name was checked
    except DATABASE_ERRORS:
        raise
    except asyncpg.PostgresError as error:
        raise SchemaMismatchError((f"Cannot read the schema {schema.name}: {error}",)) from error
    return missing(schema, {row["number"]: (row["name"], row["checksum"]) for row in rows})


async def migrate(
    url: str, schema: Schema, *, applied: Callable[[Migration], None] = lambda _: None
) -> None:
    """Apply the missing migrations. Several processes can do so at the same time.

    `applied` is called after each committed migration.

    While a lock that a migration needs is held, the migration is retried for MAX_LOCK_WAIT.

    Raises:
        SchemaMismatchError: the applied migrations differ; nothing was changed.
        MigrationError: PostgreSQL rejected a migration, or it took too long.
        StoreConnectionLostError: the database is unavailable or full.
    """
    async with connect(url, statement_timeout=None) as connection:
        while (migration := await _next(connection, schema)) is not None:
            applied(migration)


@backoff.on_exception(
    backoff.expo,
    asyncpg.LockNotAvailableError,
    max_time=MAX_LOCK_WAIT,
    max_value=LOCK_TIMEOUT,
    logger=None,
)
async def _next(connection: Any, schema: Schema) -> Migration | None:
    """Apply the next migration and return it; None if the schema is up to date."""
    async with connection.transaction():
        await connection.execute(
            "SET LOCAL statement_timeout = 0"
        )  # another process may be at work
        # The lock is held until the commit, so the next process sees this migration.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"ringback {schema.name}"
        )
        waiting = await pending(connection, schema)
        if not waiting:
            return None
        migration = waiting[0]
        await connection.execute(
            f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT} s';"
            f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT} s'"
        )
        try:
            await connection.execute(
                f"""CREATE SCHEMA IF NOT EXISTS {schema.name};
                CREATE TABLE IF NOT EXISTS {schema.name}.migrations (
                    number integer PRIMARY KEY,
                    name text NOT NULL,
                    checksum text NOT NULL,
                    applied_at timestamptz NOT NULL DEFAULT now()
                )"""
            )
            await connection.execute(migration.sql)
            await connection.execute(
                f"INSERT INTO {schema.name}.migrations (number, name, checksum)"  # noqa: S608 - the name was checked
                " VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.checksum,
            )
        except asyncpg.QueryCanceledError as error:
            raise MigrationError(
                f"Cannot apply migration {migration} of the schema {schema.name}: a statement took"
                f" longer than {STATEMENT_TIMEOUT} s. Split it into several migrations."
            ) from error
        except DATABASE_ERRORS:
            raise
        except asyncpg.PostgresError as error:
            raise MigrationError(
                f"Cannot apply migration {migration} of the schema {schema.name}: {error}"
            ) from error
    return migration
