"""Migrations: how a service's schema came to be, in files `sql/migrations/0001_name.sql`.

They are numbered from 1 without a gap and go forward only. Each is one transaction, together with
its line in the schema's table `migrations`, which keeps a checksum: an applied file never changes.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import asyncpg

from shared.errors import RingbackError
from shared.postgres.connection import DATABASE_ERRORS, connect

_FILE: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_SCHEMA: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step, `sql`, of a schema's history."""

    number: int
    name: str
    sql: str

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, however its lines end."""
        return hashlib.sha256("\n".join(self.sql.splitlines()).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Schema:
    """What a service owns in the database: a schema of its name, made by its migrations."""

    name: str
    migrations: tuple[Migration, ...]

    @classmethod
    def of(cls, package: str) -> "Schema":
        """That of a service's package: `Schema.of("services.scheduler")` is named `scheduler`.

        Raises:
            ValueError: its migrations are not named or numbered as they must be.
        """
        return cls(package.rpartition(".")[2], migrations(package))

    def __post_init__(self) -> None:
        if not _SCHEMA.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name for a schema")


class SchemaOutdatedError(RingbackError):
    """The schema lacks migrations that this code needs."""

    def __init__(self, schema: Schema, missing: tuple[Migration, ...]) -> None:
        names = ", ".join(map(str, missing))
        super().__init__(
            f"the database's schema {schema.name} is not up to date, it lacks {names}:"
            " run `ringback migrate`"
        )


class SchemaMismatchError(RingbackError):
    """The schema's history is not the one this code knows; `faults` names each difference."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class MigrationError(RingbackError):
    """PostgreSQL refused a migration. It was rolled back; those before it stay."""


def migrations(package: str) -> tuple[Migration, ...]:
    """The migrations of a service's package, in order.

    Raises:
        ValueError: a file is named or numbered otherwise than it must be.
    """
    folder = resources.files(package).joinpath("sql", "migrations")
    return ordered(
        {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}
    )


def ordered(files: Mapping[str, str]) -> tuple[Migration, ...]:
    """Migrations from files, by their names.

    Raises:
        ValueError: a name is wrong, a number is there twice or left out, or there is no file.
    """
    found = []
    for file, sql in sorted(files.items()):
        match = _FILE.fullmatch(file)
        if match is None:
            raise ValueError(f"{file!r} is no migration; name it like 0001_first.sql")
        found.append(Migration(int(match[1]), match[2], sql))
    numbers = [migration.number for migration in found]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"migrations must be numbered 0001, 0002, …; these are {numbers}")
    return tuple(found)


def missing(schema: Schema, applied: Mapping[int, tuple[str, str]]) -> tuple[Migration, ...]:
    """The migrations that are not among the applied ones, given as number: (name, checksum).

    Raises:
        SchemaMismatchError: what was applied is not the beginning of what this code knows.
    """
    known = {migration.number: migration for migration in schema.migrations}
    faults = []
    for number, (name, checksum) in sorted(applied.items()):
        label = f"migration {number:04}_{name} of the schema {schema.name}"
        if number not in known:
            faults.append(f"{label} is newer than this Ringback: run a newer one")
        elif known[number].name != name:
            faults.append(f"{label} is named {known[number]} in this Ringback: it must not change")
        elif known[number].checksum != checksum:
            faults.append(f"{label} was changed after it was applied: put the file back as it was")
    lacking = tuple(each for each in schema.migrations if each.number not in applied)
    faults += [
        f"migration {each} of the schema {schema.name} was left out, but later ones were applied:"
        " restore the table of migrations"
        for each in lacking
        if applied and each.number < max(applied)
    ]
    if faults:
        raise SchemaMismatchError(tuple(faults))
    return lacking


async def pending(connection: Any, schema: Schema) -> tuple[Migration, ...]:
    """The migrations that a database lacks; changes nothing.

    Raises:
        SchemaMismatchError: its history is another, or we may not read it.
        one of DATABASE_ERRORS: the database is in trouble.
    """
    table = f"{schema.name}.migrations"
    try:
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            return schema.migrations
        rows = await connection.fetch(f"SELECT number, name, checksum FROM {table}")  # noqa: S608 - the name was checked
    except DATABASE_ERRORS:
        raise
    except asyncpg.PostgresError as error:
        raise SchemaMismatchError((f"the schema {schema.name} can't be read: {error}",)) from error
    return missing(schema, {row["number"]: (row["name"], row["checksum"]) for row in rows})


async def migrate(
    url: str, schema: Schema, *, applied: Callable[[Migration], None] = lambda _: None
) -> None:
    """Bring a schema up to date. Of several at once, each migration is applied by one.

    `applied` hears of each migration once it is committed.

    Raises:
        SchemaMismatchError: its history is another; nothing was done.
        MigrationError: PostgreSQL refused one; the error names it.
        StoreConnectionLostError: the database is gone or full.
    """
    async with connect(url, patience=None) as connection:
        while (migration := await _next(connection, schema)) is not None:
            applied(migration)


async def _next(connection: Any, schema: Schema) -> Migration | None:
    """Apply the next migration; None if there is none."""
    async with connection.transaction():
        # Held to the transaction's end, so that whoever waits here sees what we have done.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"ringback {schema.name}"
        )
        todo = await pending(connection, schema)
        if not todo:
            return None
        migration = todo[0]
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
        except DATABASE_ERRORS:
            raise
        except asyncpg.PostgresError as error:
            raise MigrationError(
                f"migration {migration} of the schema {schema.name} was refused: {error}"
            ) from error
    return migration
