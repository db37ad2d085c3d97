"""Replays: deliver the messages again that failed at an endpoint in an interval.

The rate is bounded. A replay is a row with a cursor. Each batch moves the cursor in the transaction
that makes its deliveries pending, so a crash neither repeats nor omits one.
"""

import math
from typing import Any, Final
from uuid import UUID

from services.subscriptions.deliveries.store import redeliver
from services.subscriptions.endpoints.store import SQL
from shared.contracts.endpoints import EndpointStatus
from shared.postgres.pool import Database

MAX_BATCH: Final = 500
_REPLAYABLE: Final = (EndpointStatus.ACTIVE, EndpointStatus.PAUSED)


class Replays:
    """Runs replays, each with at most `rate` deliveries a second."""

    def __init__(self, database: Database, *, rate: float) -> None:
        self._database = database
        self._rate = rate
        self._batch = min(MAX_BATCH, math.ceil(rate))

    async def run_once(self) -> int:
        """Run a batch of each due replay, and return the number of deliveries.

        Raises:
            StoreConnectionLostError: the database is unavailable; replays continue later.
        """
        due = await self._database.fetch(SQL["due_replays"])
        return sum([await self._continue(row["id"]) for row in due])

    async def next_in(self) -> float | None:
        """Return the seconds until the next replay is due, or None if there is none."""
        row = await self._database.fetchrow(SQL["next_replay"])
        return None if row is None else row[0]

    async def _continue(self, id_: UUID) -> int:
        async with self._database.transaction() as connection:
            replay = await connection.fetchrow(SQL["lock_replay"], id_)
            if replay is None:  # another process works on it
                return 0
            count = await self._replay_batch(connection, id_, replay)
            if count < self._batch:
                await connection.execute(SQL["end_replay"], id_)
        return count

    async def _replay_batch(self, connection: Any, id_: UUID, replay: Any) -> int:
        """Make a batch of deliveries pending, and return how many were found."""
        endpoint = await connection.fetchrow(SQL["lock_endpoint"], replay["endpoint_id"])
        if endpoint is None or endpoint["status"] not in _REPLAYABLE:
            return 0
        rows = await connection.fetch(
            SQL["failed"],
            *(replay["endpoint_id"], replay["since"], replay["until"]),
            *(replay["cursor"], self._batch),
        )
        ids = [row["id"] for row in rows]
        if ids:
            await redeliver(connection, replay["endpoint_id"], ids, self._rate)
            seconds = len(ids) / self._rate
            await connection.execute(SQL["replayed"], id_, ids[-1], len(ids), seconds)
        return len(ids)
