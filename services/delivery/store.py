"""Claimed and sent messages, processes, token buckets and stops in PostgreSQL.

Every method raises StoreConnectionLostError when the database is unavailable. The effect is then
unknown, and repeating the call is safe.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from services.delivery.domain import Grant, Rate, take_tokens
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.registry import Priority

SQL: Final = queries("services.delivery")
# Seconds for which stops are kept: a year. A message that expires late can wait as long in a queue
# that nothing consumes.
STOP_RETENTION: Final = 365 * 86_400.0


class Store:
    """The schema `delivery`, which all delivery processes share."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, providers: Sequence[str], lease: float) -> int:
        """Register a process that is alive for `lease` seconds, and return its id."""
        row = await self._database.fetchrow(SQL["register"], providers, lease)
        return int(row["id"])

    async def renew(self, process: int, lease: float) -> bool:
        """Keep a process alive for `lease` seconds; return False if it is not alive any more."""
        return await self._database.fetchrow(SQL["renew"], process, lease) is not None

    async def alive(self) -> Mapping[str, int]:
        """Return the number of live processes of each provider."""
        rows = await self._database.fetch(SQL["alive"])
        return {row["provider"]: row["processes"] for row in rows}

    async def unregister(self, process: int) -> None:
        """Remove a process, so that others can take over its claims."""
        await self._database.execute(SQL["unregister"], process)

    async def claim(self, process: int, messages: Sequence[UUID]) -> dict[UUID, float | None]:
        """Claim messages for a process, and return those that it may not send.

        The value is the duration of the attempt that sent the message, or None if another process
        is sending it.
        """
        # The same order in every process prevents deadlocks.
        rows = await self._database.fetch(SQL["claim"], process, sorted(messages))
        return {row["id"]: row["duration"] for row in rows}

    async def record(self, sent: Mapping[UUID, float]) -> None:
        """Record messages as sent, with the duration of their attempt."""
        ids = sorted(sent)
        await self._database.execute(SQL["record"], ids, [sent[id_] for id_ in ids])

    async def release(self, process: int, messages: Sequence[UUID]) -> None:
        """Give up claims of messages that were not sent."""
        await self._database.execute(SQL["release"], process, sorted(messages))

    async def stop(self, mailing_id: str, version: int, at: datetime | None) -> None:
        """Stop a mailing from a time on, or now, unless a newer version of it is known."""
        await self._database.execute(SQL["stop"], mailing_id, version, at)

    async def stops(self, mailings: Collection[str]) -> dict[str, float]:
        """Return the seconds until each of these mailings is stopped, 0 if it is.

        A mailing without a stop is not in the result.
        """
        rows = await self._database.fetch(SQL["stops"], mailings)
        return {row["mailing_id"]: row["remaining"] for row in rows}

    async def delete_old(self, age: float, limit: int) -> int:
        """Delete up to `limit` messages that are older than `age` seconds; return their number.

        Processes that ended a day ago are deleted, too, and stops that are too old to matter.
        """
        await self._database.execute(SQL["delete_processes"])
        await self._database.execute(SQL["delete_stops"], STOP_RETENTION)
        status = await self._database.execute(SQL["delete_messages"], age, limit)
        return int(status.removeprefix("DELETE "))

    async def take_tokens(self, provider: str, rate: Rate, wanted: Mapping[Priority, int]) -> Grant:
        """Take tokens from the bucket of a provider, as many as it has."""
        async with self._database.transaction() as connection:
            bucket = await connection.fetchrow(SQL["lock_provider"], provider)
            if bucket is None:  # a new bucket is full
                await connection.execute(SQL["add_provider"], provider, rate.burst)
                bucket = await connection.fetchrow(SQL["lock_provider"], provider)
            now = await connection.fetchval(SQL["now"])
            # The clock of the database can be set back.
            elapsed = max((now - bucket["refilled_at"]).total_seconds(), 0.0)
            grant = take_tokens(rate, bucket["tokens"], elapsed, wanted)
            await connection.execute(SQL["refill_provider"], provider, grant.left, now)
        return grant
