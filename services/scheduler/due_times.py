"""When callbacks of a client are due: counts by time, and the next occurrences of one."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from json import loads
from typing import Any, Final

from services.scheduler import domain
from services.scheduler.clock import DatabaseClock
from services.scheduler.operations import CALLBACK_NOT_FOUND
from services.scheduler.recurrence import next_occurrences
from services.scheduler.store import Store
from shared.contracts.requests import Failure
from shared.contracts.schedule_requests import (
    CountDue,
    DueCount,
    DueCounts,
    ListOccurrences,
    Occurrences,
)
from shared.contracts.schedules import Status
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.scheduler", "due_times.sql")
# Callbacks of a span that are counted. Beyond it their number is estimated, so a request reads
# 60,000 entries of the index at most, with any number of callbacks.
MAX_COUNT: Final = 1000
OCCURRENCES: Final = 10


class DueTimes:
    """Executes operations. Their first argument is the client id; '' is the anonymous client.

    All operations raise StoreConnectionLostError.
    """

    def __init__(self, database: Database, store: Store, clock: DatabaseClock) -> None:
        self._database = database
        self._store = store
        self._clock = clock

    async def count(self, client_id: str, request: CountDue) -> DueCounts:
        """Count callbacks that wait, by the time of their next attempt."""
        spans = list(pairwise(request.bounds))
        counts = await self._counts(client_id, spans)
        return DueCounts(
            items=[
                DueCount(since=span[0], callbacks=number, estimated=False)
                if number < MAX_COUNT
                else DueCount(
                    since=span[0], callbacks=await self._estimate(client_id, *span), estimated=True
                )
                for span, number in zip(spans, counts, strict=True)
            ]
        )

    async def occurrences(self, client_id: str, request: ListOccurrences) -> Occurrences | Failure:
        """Return when the next occurrences of a callback are due."""
        id_ = await self._store.find(client_id, request.id, None, None)
        rows = {} if id_ is None else await self._store.statuses([id_])
        if id_ not in rows:
            return CALLBACK_NOT_FOUND
        await self._clock.wait_synced()
        # Ten times of a rare cron expression take up to 0.1 s, in which the loop would stand still.
        times = await asyncio.to_thread(_next, rows[id_], self._clock.now())
        return Occurrences(items=times)

    async def _counts(
        self, client_id: str, spans: Sequence[tuple[datetime, datetime]]
    ) -> Sequence[int]:
        since, until = zip(*spans, strict=True)
        rows = await self._database.fetch(
            SQL["counts"], client_id, list(since), list(until), MAX_COUNT
        )
        return [row["callbacks"] for row in rows]

    async def _estimate(self, client_id: str, since: datetime, until: datetime) -> int:
        """Return an estimate of the number of callbacks, which is known to be large."""
        row = await self._database.fetchrow(SQL["estimate"], client_id, since, until)
        return max(int(loads(row[0])[0]["Plan"]["Plan Rows"]), MAX_COUNT)


def _next(row: Any, now: datetime) -> list[datetime]:
    """Return when the next occurrences are due, the one that waits first."""
    recurrence = domain.parse_rules(row["rules"]).recurrence
    status = Status(row["status"])
    if recurrence is None or status in domain.FINAL_STATUSES or row["cancel_requested"]:
        return []
    waiting = [row["run_at"]] if status is Status.SCHEDULED else []
    return waiting + next_occurrences(
        recurrence, row["run_at"], row["occurrence"], now, OCCURRENCES - len(waiting)
    )
