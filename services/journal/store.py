"""The journal's tables, as the reader of the stream writes them.

All methods raise StoreConnectionLostError if the database is unavailable, slow or full.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any, Final

from pydantic import BaseModel

from services.journal import domain
from services.journal.domain import EntryRow, Minute, MinuteKey, RequestRow, Rows
from services.journal.partitions import Partitions
from services.journal.targets.limit import TargetLimit
from shared.errors import InfrastructureError
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.topology import JOURNAL_FACTS

SQL: Final = queries("services.journal")
_ENTRY_COLUMNS: Final = EntryRow._fields
# The commit need not reach the disk. If the database loses it, it loses the position as well, so
# the stream is read again.
_ASYNCHRONOUS: Final = "SET LOCAL synchronous_commit = off"

# How far back an earlier request of the same callback is searched. One that waits longer for its
# next attempt is kept again. Replays use the first one.
REPEAT_SPAN: Final = timedelta(days=1)

# Stores what another part of the journal keeps of the facts, in the same transaction.
Recorder = Callable[[Any, Sequence[BaseModel]], Awaitable[None]]


class SupersededError(InfrastructureError):
    """Another process has stored messages in between. Nothing was stored."""


class _CheckedError(Exception):
    """Rolls back a check."""


@dataclass(frozen=True, slots=True)
class Position:
    """The last stored message: its offset, -1 before the first, and its message id."""

    offset: int
    message_id: str | None


@dataclass(frozen=True, slots=True)
class Missed:
    """Messages that the stream dropped: the first and the last offset."""

    first: int
    last: int

    @property
    def messages(self) -> int:
        """Return how many there were, with RabbitMQ's own records among them."""
        return self.last - self.first + 1


class Store:
    """Stores batches of facts together with the position in the stream."""

    def __init__(
        self,
        database: Database,
        partitions: Partitions,
        *,
        retention: timedelta,
        recorders: Sequence[Recorder] = (),
    ) -> None:
        self._database = database
        self._partitions = partitions
        self._retention = retention
        self._recorders = recorders
        self._targets = TargetLimit()

    async def position(self) -> Position:
        """Return the position in the stream."""
        row = await self._database.fetchrow(SQL["position"], JOURNAL_FACTS)
        return Position(row["offset"], row["message_id"])

    async def add(
        self,
        facts: Sequence[BaseModel],
        before: Position,
        after: Position,
        missed: Sequence[Missed] = (),
    ) -> int:
        """Store facts, move the position, and return how many facts were too old.

        Raises:
            SupersededError: the position is not `before`.
        """
        rows = await self._rows(facts)
        async with self._database.transaction() as connection:
            await connection.execute(_ASYNCHRONOUS)
            await self._advance(connection, before, after)
            for gap in missed:
                await connection.execute(
                    SQL["insert_gap"],
                    JOURNAL_FACTS,
                    gap.first,
                    gap.last,
                    gap.messages,
                    "backlog_exceeded",
                )
            await self._insert(connection, rows, facts)
        return rows.expired

    async def check(self, facts: Sequence[BaseModel]) -> None:
        """Raise what `add` would raise over a value of these facts, and store nothing."""
        rows = await self._rows(facts)
        with suppress(_CheckedError):
            async with self._database.transaction() as connection:
                await self._insert(connection, rows, facts)
                raise _CheckedError

    async def restart(self, before: Position) -> None:
        """Begin with the first message, because the stream was replaced by another one."""
        async with self._database.transaction() as connection:
            await self._advance(connection, before, Position(-1, None))
            await connection.execute(
                SQL["insert_gap"],
                JOURNAL_FACTS,
                before.offset + 1,
                before.offset + 1,
                None,
                "stream_replaced",
            )

    async def report_lag(self, seconds: float) -> None:
        """Store how far the journal is behind, for the overview of every process."""
        await self._database.execute(SQL["report_lag"], JOURNAL_FACTS, seconds)

    async def _rows(self, facts: Sequence[BaseModel]) -> Rows:
        """Return the rows of these facts, after creating their partitions."""
        now = await self._partitions.now()
        rows = domain.rows(facts, now=now, retention=self._retention)
        rows.minutes = self._targets.limited(rows.minutes)
        await self._partitions.ensure({row.at.astimezone(UTC).date() for row in rows.entries})
        return rows

    async def _insert(self, connection: Any, rows: Rows, facts: Sequence[BaseModel]) -> None:
        if rows.entries:
            await connection.copy_records_to_table(
                "entries", schema_name="journal", columns=_ENTRY_COLUMNS, records=rows.entries
            )
        if rows.minutes:
            await connection.execute(SQL["add_minutes"], *_minute_columns(rows.minutes))
        if rows.requests:
            times = [request.at for request in rows.requests]
            await connection.execute(
                SQL["keep_requests"],
                *_columns(rows.requests),
                min(times) - REPEAT_SPAN,
                max(times),
            )
        for record in self._recorders:
            await record(connection, facts)

    async def _advance(self, connection: Any, before: Position, after: Position) -> None:
        status = await connection.execute(
            SQL["advance"], JOURNAL_FACTS, before.offset, after.offset, after.message_id
        )
        if status != "UPDATE 1":
            raise SupersededError("another process stores facts", effect_unknown=False)


def _columns(records: Sequence[RequestRow]) -> list[list[Any]]:
    return [list(column) for column in zip(*records, strict=True)]


def _minute_columns(minutes: Mapping[MinuteKey, Minute]) -> list[list[Any]]:
    targets, clients, times = zip(*minutes, strict=True)
    values = minutes.values()
    return [
        list(targets),
        list(clients),
        list(times),
        [minute.delivered for minute in values],
        [minute.failed for minute in values],
        [",".join(map(str, minute.buckets)) for minute in values],
    ]
