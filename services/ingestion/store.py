"""The keys of seen events and the outbox, in PostgreSQL. Every method is one statement.

All methods raise StoreConnectionLostError when the database is unavailable, slow or full. The
statement may still have been executed. Each method is safe to repeat.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.ingestion.domain import Command, Kind
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.ingestion")


@dataclass(frozen=True, slots=True)
class PendingCommand:
    """A command to be published. `created_at` is in epoch seconds."""

    command: Command
    created_at: float
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class AcceptedEvent:
    """The key of an accepted event, and its commands."""

    key: UUID
    commands: tuple[PendingCommand, ...]


class Store:
    """The tables of ingestion; several processes may use them at the same time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accept(self, events: Sequence[AcceptedEvent], *, lease: float) -> set[UUID]:
        """Store events with different keys, and return the keys that are new.

        Claims the commands of new events for `lease` seconds. Ignores events with known keys.
        """
        commands = [(event.key, pending) for event in events for pending in event.commands]
        rows = await self._database.fetch(
            SQL["accept"],
            [event.key for event in events],
            [key for key, _ in commands],
            [pending.command.id for _, pending in commands],
            [pending.command.kind.value for _, pending in commands],
            [pending.command.body for _, pending in commands],
            [pending.traceparent for _, pending in commands],
            [datetime.fromtimestamp(pending.created_at, UTC) for _, pending in commands],
            lease,
        )
        return {row["key"] for row in rows}

    async def claim(self, limit: int, *, lease: float) -> list[PendingCommand]:
        """Claim commands without a valid lease for `lease` seconds, and return them."""
        return [
            PendingCommand(
                Command(row["id"], Kind(row["kind"]), row["body"]),
                row["created_at"].timestamp(),
                row["traceparent"],
            )
            for row in await self._database.fetch(SQL["claim"], limit, lease)
        ]

    async def delete(self, ids: Collection[UUID]) -> None:
        """Delete published commands."""
        await self._database.execute(SQL["delete"], ids)

    async def release(self, ids: Collection[UUID], *, after: float) -> None:
        """Let the leases of these commands expire `after` seconds from now."""
        await self._database.execute(SQL["release"], ids, after)

    async def prune(self, age: timedelta, limit: int) -> int:
        """Delete at most `limit` keys older than `age`, and return the number deleted."""
        status = await self._database.execute(SQL["prune"], age.total_seconds(), limit)
        return int(status.removeprefix("DELETE "))
