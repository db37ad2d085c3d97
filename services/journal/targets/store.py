"""Reads the figures of targets. All methods raise StoreConnectionLostError.

A client id or target of None means all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.journal.durations import BUCKETS, quantile
from services.journal.reading import reading
from shared.contracts.journal_figures import Breaker, FullLane, MinuteFigures, TargetHealth
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.topology import JOURNAL_FACTS

# The sum of each bucket, as an array.
_BUCKETS: Final = (
    f"ARRAY[{', '.join(f'sum(buckets[{n}]::integer)' for n in range(1, BUCKETS + 1))}]"
)
SQL: Final[Mapping[str, str]] = {
    name: sql.replace("{buckets}", _BUCKETS)
    for name, sql in queries("services.journal", "figures.sql").items()
}
# Breakers, lanes and paused targets in a response.
MAX_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class State:
    """The journal's own state. `lag` and `checked_ago` are in seconds, None before the first check.

    checked_ago: how long ago the lag was measured.
    """

    now: datetime
    lag: float | None
    checked_ago: float | None
    running_jobs: int
    paused: list[str]


class Figures:
    """The tables `journal.minutes`, `journal.breakers` and `journal.full_lanes`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def targets(
        self,
        since: datetime,
        limit: int,
        *,
        client_id: str | None = None,
        target: str | None = None,
        after: tuple[int, str] | None = None,
    ) -> list[TargetHealth]:
        """Return the health of targets since a minute, those with the most errors first.

        after: the errors and the target of the last one of the page before.
        """
        failed, name = (None, None) if after is None else after
        async with reading(self._database) as connection:
            rows = await connection.fetch(
                SQL["targets"], since, client_id, failed, name, limit, target
            )
        return [
            TargetHealth(
                target=row["target"],
                delivered=row["delivered"],
                failed=row["failed"],
                **quantiles(row["buckets"]),
                paused=row["paused"],
                breaker_open=row["breaker_open"],
                lane_full=row["lane_full"],
            )
            for row in rows
        ]

    async def minutes(
        self,
        since: datetime,
        until: datetime,
        *,
        target: str | None = None,
        client_id: str | None = None,
    ) -> tuple[list[MinuteFigures], list[int]]:
        """Return the attempts by minute, the first one first, and the buckets of all."""
        # The condition decides which index is used, so it is not left to a parameter.
        condition, values = ("", ()) if target is None else ("AND target = $4", (target,))
        sql = SQL["minutes"].replace("{target}", condition)
        async with reading(self._database) as connection:
            rows = await connection.fetch(sql, since, until, client_id, *values)
        total = [sum(counts) for counts in zip(*(row["buckets"] for row in rows), strict=True)]
        return [
            MinuteFigures(
                at=row["at"],
                delivered=row["delivered"],
                failed=row["failed"],
                **quantiles(row["buckets"]),
            )
            for row in rows
        ], total

    async def breakers(
        self, *, target: str | None = None, client_id: str | None = None
    ) -> list[Breaker]:
        """Return the open circuit breakers."""
        rows = await self._database.fetch(SQL["breakers"], target, client_id, MAX_SHOWN)
        return [Breaker(**dict(row) | {"client_id": row["client_id"] or None}) for row in rows]

    async def full_lanes(self, target: str, *, client_id: str | None = None) -> list[FullLane]:
        """Return the lanes of a target that were full in the last minute."""
        rows = await self._database.fetch(SQL["full_lanes"], target, client_id, MAX_SHOWN)
        return [FullLane(**dict(row) | {"client_id": row["client_id"] or None}) for row in rows]

    async def state(self) -> State:
        """Return the journal's own state."""
        row: Any = await self._database.fetchrow(SQL["state"], JOURNAL_FACTS, MAX_SHOWN)
        return State(**row)


def quantiles(buckets: list[int] | None) -> dict[str, float | None]:
    """Return the median and the 99th percentile of durations in buckets."""
    counts = buckets or []
    return {"p50": quantile(counts, 0.5), "p99": quantile(counts, 0.99)}
