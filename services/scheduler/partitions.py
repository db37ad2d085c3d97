"""The daily partitions of `scheduler.finished_callbacks`."""

from datetime import date, datetime, timedelta
from typing import Final

from shared.postgres.pool import Database
from shared.postgres.queries import queries

DAYS_AHEAD: Final = 7
_SQL: Final = queries("services.scheduler")
# A new or dropped partition locks the whole table for a moment. Without a timeout, it would queue
# behind a reader, and all others would queue behind it.
_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '1s'"


class Partitions:
    """Creates, lists and drops partitions. Methods raise StoreConnectionLostError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self) -> None:
        """Create the missing partitions for today and the days ahead."""
        today = (await self._now()).date()
        for day in (today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)):
            async with self._database.transaction() as connection:
                await connection.execute(_LOCK_TIMEOUT)
                await connection.execute(_create_statement(day))

    async def expired(self, retention: timedelta) -> list[str]:
        """Return the partitions that are older than the retention, oldest first."""
        oldest = partition_name((await self._now() - retention).date())
        rows = await self._database.fetch(_SQL["partitions"])
        return [row["name"] for row in rows if row["name"] < oldest]

    async def delete(self, name: str, limit: int) -> int:
        """Delete callbacks of a partition with their requests; return 0 if there were none left.

        A retry also deletes the finished row, so a callback is either deleted or retried.
        """
        row = await self._database.fetchrow(
            f"""WITH batch AS MATERIALIZED (
                SELECT id FROM scheduler.{name} ORDER BY id LIMIT $1
            ), old AS (
                DELETE FROM scheduler.{name} WHERE id IN (SELECT id FROM batch) RETURNING id
            ), deleted AS (
                DELETE FROM scheduler.callback_requests r USING old WHERE r.id = old.id
            )
            SELECT count(*) AS count FROM batch""",  # noqa: S608 - name is from pg_class
            limit,
        )
        return int(row["count"])

    async def drop(self, name: str) -> None:
        """Drop a partition."""
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK_TIMEOUT)
            await connection.execute(f"DROP TABLE scheduler.{name}")

    async def _now(self) -> datetime:
        now: datetime = (await self._database.fetchrow(_SQL["now"]))["now"]
        return now


def partition_name(day: date) -> str:
    """Return the name of a day's partition. Names sort by day."""
    return f"finished_callbacks_{day:%Y%m%d}"


def _create_statement(day: date) -> str:
    return (
        f"CREATE TABLE IF NOT EXISTS scheduler.{partition_name(day)}"
        f" PARTITION OF scheduler.finished_callbacks"
        f" FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
    )
