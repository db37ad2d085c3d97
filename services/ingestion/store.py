"""Keys of seen events and the outbox, in PostgreSQL. Every method is one statement.

All raise StoreConnectionLostError when the database is unavailable, slow or full. Whether they took
effect is then unknown. Each is safe to repeat.
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
class Pending:
    """A command on its way out. `created_at` in epoch seconds."""

    command: Command
    created_at: float
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event that is to be acted on, and by which commands."""

    key: UUID
    commands: tuple[Pending, ...]


class Store:
    """Whose methods several processes may call at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accept(self, events: Sequence[Accepted], *, lease: float) -> set[UUID]:
        """Take in events of different keys; the keys that were not known.

        Their commands are ours to publish for `lease` seconds. Those of known keys are not stored.
        """
        commands = [(event.key, each) for event in events for each in event.commands]
        rows = await self._database.fetch(
            SQL["accept"],
            [event.key for event in events],
            [key for key, _ in commands],
            [each.command.id for _, each in commands],
            [each.command.kind.value for _, each in commands],
            [each.command.body for _, each in commands],
            [each.traceparent for _, each in commands],
            [datetime.fromtimestamp(each.created_at, UTC) for _, each in commands],
            lease,
        )
        return {row["key"] for row in rows}

    async def claim(self, limit: int, *, lease: float) -> list[Pending]:
        """Commands that nobody has a lease of: ours for `lease` seconds."""
        return [
            Pending(
                Command(row["id"], Kind(row["kind"]), row["body"]),
                row["created_at"].timestamp(),
                row["traceparent"],
            )
            for row in await self._database.fetch(SQL["claim"], limit, lease)
        ]

    async def delete(self, ids: Collection[UUID]) -> None:
        """Forget commands that were published."""
        await self._database.execute(SQL["delete"], ids)

    async def release(self, ids: Collection[UUID], *, after: float) -> None:
        """Let anybody publish these commands, `after` seconds from now."""
        await self._database.execute(SQL["release"], ids, after)

    async def prune(self, age: timedelta, limit: int) -> int:
        """Forget so many keys, at most, that are older than `age`; how many it were."""
        status = await self._database.execute(SQL["prune"], age.total_seconds(), limit)
        return int(status.removeprefix("DELETE "))
