"""The daily partitions of the tables `journal.entries` and `journal.requests`."""

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Final

import asyncpg

from shared.postgres.pool import Database
from shared.postgres.queries import queries

TABLES: Final = ("entries", "requests")
DAYS_AHEAD: Final = 7
_SQL: Final = queries("services.journal")
# A new or dropped partition locks the whole table for a moment. Without a timeout, it would queue
# behind a reader, and all others would queue behind it.
_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '1s'"


class Partitions:
    """Creates, lists and drops partitions. Methods raise StoreConnectionLostError."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: set[date] = set()

    async def now(self) -> datetime:
        """Return the time of the database."""
        now: datetime = (await self._database.fetchrow(_SQL["now"]))["now"]
        return now

    async def create_ahead(self) -> None:
        """Create the missing partitions for today and the days ahead."""
        today = (await self.now()).astimezone(UTC).date()
        await self.ensure(today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1))

    async def ensure(self, days: Iterable[date]) -> None:
        """Create the missing partitions for these days."""
        for day in sorted(set(days) - self._known):
            for table in TABLES:
                # Another process may create it at the same time.
                with suppress(asyncpg.DuplicateTableError, asyncpg.UniqueViolationError):
                    async with self._database.transaction() as connection:
                        await connection.execute(_LOCK_TIMEOUT)
                        await connection.execute(_create_statement(table, day))
            self._known.add(day)

    async def expired(self, oldest: datetime) -> list[str]:
        """Return the partitions that end before a time, oldest first."""
        found = []
        for table in TABLES:
            limit = partition_name(table, oldest.astimezone(UTC).date())
            rows = await self._database.fetch(_SQL["partitions"], f"journal.{table}")
            found += [row["name"] for row in rows if row["name"] < limit]
        return found

    async def drop(self, name: str) -> None:
        """Drop a partition."""
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK_TIMEOUT)
            await connection.execute(f"DROP TABLE IF EXISTS journal.{name}")
        self._known = {
            day for day in self._known if name not in {partition_name(t, day) for t in TABLES}
        }


def partition_name(table: str, day: date) -> str:
    """Return the name of a day's partition. Names sort by day."""
    return f"{table}_{day:%Y%m%d}"


def _create_statement(table: str, day: date) -> str:
    return (
        f"CREATE TABLE IF NOT EXISTS journal.{partition_name(table, day)}"
        f" PARTITION OF journal.{table}"
        f" FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
    )
