"""Scheduled callbacks in PostgreSQL. Every method is one statement or one transaction.

All methods raise StoreConnectionLostError if the database is unavailable, slow or full. It is then
unknown whether the method took effect. Each is safe to repeat.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from services.scheduler.domain import ScheduledCallback, parse_rules
from services.scheduler.messages import Content
from services.scheduler.partitions import Partitions
from services.scheduler.records import (
    Backlog,
    Claim,
    ExistingCallback,
    Inserted,
    Lease,
    Listed,
    Member,
    NewCallback,
    StoredFacts,
)
from services.scheduler.rows import (
    callback_of,
    content_of,
    finish_values,
    insert_values,
    save_values,
)
from shared.contracts.schedules import Status
from shared.pagination import START, Position
from shared.postgres.pool import Database
from shared.postgres.queries import queries

logger = logging.getLogger(__name__)

SQL: Final = queries("services.scheduler")
CLAIM_DUE: Final = f"WITH due AS MATERIALIZED (\n{SQL['due']}\n)\n{SQL['claim']}"
CLAIM_SHARED: Final = f"WITH due AS MATERIALIZED (\n{SQL['due_shared']}\n)\n{SQL['claim']}"
BEGINNING: Final = START[0]
# Seconds for which a claim holds a callback until its lease is extended. When they have passed, the
# callbacks of a crashed process are claimed again. A slow extension takes no longer: 5 s for the
# confirm, up to 6 s in two rounds during a backlog, 4 s for the statement.
CLAIM_LEASE: Final = 15.0

# Seconds for which the process that stored facts publishes them. Then another one does.
FACTS_LEASE: Final = 15.0

Decide = Callable[[Mapping[UUID, ScheduledCallback], datetime], Iterable[ScheduledCallback]]
Outbox = Callable[[datetime], StoredFacts | None]


class Store:
    """The schema `scheduler`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, new: Sequence[NewCallback], *, claim: bool = True) -> Inserted:
        """Insert the callbacks whose id and keys are free, and claim those that are due.

        One call must not contain the same id or keys twice: only one of them would be inserted.
        """
        columns = zip(*map(insert_values, new), strict=True)
        rows = await self._database.fetch(SQL["insert"], *map(list, columns), CLAIM_LEASE, claim)
        by_id = {request.id: request for request in new}
        callbacks = {}
        due = []
        for row in rows:
            request = by_id[row["id"]]
            callback = ScheduledCallback(
                id=request.id,
                client_id=request.client_id,
                group_key=request.group_key,
                event_key=request.event_key,
                run_at=row["run_at"],
                next_at=row["next_at"],
                status=Status.DISPATCHED if row["in_flight"] else Status.SCHEDULED,
                in_flight=row["in_flight"],
                dispatch=int(row["in_flight"]),
                stop_at=row["stop_at"],
                rules=parse_rules(request.rules),
            )
            callbacks[callback.id] = callback
            if callback.in_flight:
                due.append(
                    Claim(
                        callback,
                        request.content,
                        request.lease,
                        request.traceparent,
                        row["now"],
                        row["now"],
                    )
                )
        return Inserted(callbacks, due)

    async def existing(self, ids: Sequence[UUID]) -> dict[UUID, ExistingCallback]:
        """Return the callbacks that have one of the ids."""
        rows = await self._database.fetch(SQL["existing"], ids)
        return {
            row["id"]: ExistingCallback(
                row["id"], Status(row["status"]), row["run_at"], row["fingerprint"]
            )
            for row in rows
            if row["status"] is not None
        }

    async def claim(self, limit: int, *, after: datetime = BEGINNING) -> list[Claim]:
        """Claim `limit` callbacks that fell due after `after`, and `limit` of expired leases.

        The oldest are first. There can be fewer.
        """
        return await self._claim(CLAIM_DUE, after, limit)

    async def claim_shared(self, clients: Sequence[str], share: int) -> list[Claim]:
        """Claim at most `share` due callbacks of each of these clients."""
        return await self._claim(CLAIM_SHARED, clients, share)

    async def due_clients(self, start: str, limit: int) -> tuple[list[str], str]:
        """Return those of `limit` clients from `start` on that have due callbacks.

        Also return the client after them; '', the first one, if there is none.
        """
        rows = await self._database.fetch(SQL["due_clients"], start, limit + 1)
        following = rows[limit]["client_id"] if len(rows) > limit else ""
        return [row["client_id"] for row in rows[:limit] if row["due"]], following

    async def _claim(self, sql: str, *args: Any) -> list[Claim]:
        rows = await self._database.fetch(sql, *args, CLAIM_LEASE)
        if orphans := [row["id"] for row in rows if row["format"] is None]:
            logger.error("callbacks without a request removed", extra={"count": len(orphans)})
            await self._database.execute(SQL["remove"], orphans)
        return [
            Claim(
                callback_of(row),
                content_of(row),
                row["lease"],
                row["traceparent"],
                row["due_at"],
                row["now"],
            )
            for row in rows
            if row["format"] is not None
        ]

    async def extend(self, leases: Sequence[Lease]) -> None:
        """Extend the claims of published callbacks, from now, unless they have a result."""
        await self._database.execute(SQL["extend"], *map(list, zip(*leases, strict=True)))

    async def next_due(
        self, within: float, *, after: datetime = BEGINNING
    ) -> tuple[datetime | None, datetime]:
        """Return the next due time after `after`, within `within` seconds, and the current time."""
        row = await self._database.fetchrow(SQL["next_due"], after, within)
        return row["next_at"], row["now"]

    async def backlog(self, limit: int) -> Backlog:
        """Return how many callbacks wait; a count above `limit` is estimated, or cut off there."""
        row = await self._database.fetchrow(SQL["backlog"], limit)
        waiting = row["waiting"]
        return Backlog(
            waiting if waiting < limit else max(waiting, int(row["estimate"])),
            row["due"],
            row["oldest"] or 0.0,
        )

    async def release(self, callbacks: Sequence[ScheduledCallback], delay: float) -> None:
        """Release claims that could not be published; they are due again in `delay` seconds."""
        await self._database.execute(
            SQL["release"],
            [callback.id for callback in callbacks],
            [callback.dispatch for callback in callbacks],
            delay,
        )

    async def update(
        self, ids: Sequence[UUID], decide: Decide, outbox: Outbox = lambda _: None
    ) -> datetime:
        """Lock unfinished callbacks, write the new states from `decide`, and return the time.

        `decide` returns only callbacks that change. `outbox` is called after it, and returns the
        facts to store. Both may be called more than once.
        """
        while True:
            try:
                return await self._update(ids, decide, outbox)
            except asyncpg.CheckViolationError as error:
                if error.constraint_name is not None:
                    raise
                # No partition exists for today: the database's clock has jumped.
                await Partitions(self._database).create()

    async def _update(self, ids: Sequence[UUID], decide: Decide, outbox: Outbox) -> datetime:
        async with self._database.transaction() as connection:
            rows = await connection.fetch(SQL["lock"], ids)
            now: datetime = rows[0]["now"] if rows else await connection.fetchval("SELECT now()")
            changed = list(decide({row["id"]: callback_of(row) for row in rows}, now))
            unfinished = [callback for callback in changed if not callback.finished]
            finished = [callback for callback in changed if callback.finished]
            if unfinished:
                await connection.execute(
                    SQL["save"], *map(list, zip(*map(save_values, unfinished), strict=True))
                )
            if finished:
                await connection.execute(
                    SQL["finish"], *map(list, zip(*map(finish_values, finished), strict=True))
                )
            if (stored := outbox(now)) is not None:
                await connection.execute(SQL["store_facts"], *stored, FACTS_LEASE)
        return now

    async def replace(
        self,
        new: NewCallback,
        decide: Callable[[ScheduledCallback, datetime], ScheduledCallback | None],
    ) -> ScheduledCallback | None:
        """Replace the request of an unfinished callback, and return its new state.

        `decide` returns the new state, or None to change nothing.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock"], [new.id])
            after = None if row is None else decide(callback_of(row), row["now"])
            if after is not None:
                values = insert_values(new)
                await connection.execute(SQL["replace"], new.id, *values[5:14])
                await connection.execute(SQL["save"], *([each] for each in save_values(after)))
        return after

    async def change(
        self,
        id_: UUID,
        decide: Callable[
            [ScheduledCallback, Content, datetime], tuple[ScheduledCallback, Content] | None
        ],
    ) -> None:
        """Change the state and the content of an unfinished callback.

        `decide` returns both, or None to change nothing. It is not called for other callbacks.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock"], [id_])
            if row is None:
                return
            stored = content_of(await connection.fetchrow(SQL["content"], id_))
            changed = decide(callback_of(row), stored, row["now"])
            if changed is not None:
                after, content = changed
                if content != stored:
                    await connection.execute(SQL["change"], id_, content.context, content.message)
                await connection.execute(SQL["save"], *([each] for each in save_values(after)))

    async def claim_facts(self) -> StoredFacts | None:
        """Return facts whose process has not published them in time; None if there are none."""
        row = await self._database.fetchrow(SQL["claim_facts"], FACTS_LEASE)
        return None if row is None else StoredFacts(row["id"], row["facts"])

    async def delete_facts(self, id_: UUID) -> None:
        """Delete facts that are confirmed."""
        await self._database.execute(SQL["delete_facts"], id_)

    async def finished(self, ids: Sequence[UUID]) -> dict[UUID, ScheduledCallback]:
        """Return those of the callbacks that have finished."""
        rows = await self._database.fetch(SQL["finished"], ids)
        return {
            row["id"]: ScheduledCallback(
                id=row["id"],
                client_id=row["client_id"],
                group_key=row["group_key"],
                event_key=row["event_key"],
                run_at=row["run_at"],
                next_at=row["run_at"],
                occurrence=row["occurrence"],
                status=Status(row["status"]),
                dispatch=row["dispatch"],
                first_dispatch=row["first_dispatch"],
                earlier_attempts=row["attempts"],
                last_error=row["last_error"],
                rules=parse_rules(row["rules"]),
            )
            for row in rows
        }

    async def correct(self, ids: Sequence[UUID]) -> list[UUID]:
        """Make failed callbacks notified; return those that were failed."""
        return [row["id"] for row in await self._database.fetch(SQL["correct"], ids)]

    async def find(
        self, client_id: str, id_: UUID | None, group_key: str | None, event_key: str | None
    ) -> UUID | None:
        """Return the id of a client's callback, or None if the client has no such callback."""
        if id_ is not None:
            row = await self._database.fetchrow(SQL["id_of_client"], client_id, id_)
        else:
            row = await self._database.fetchrow(SQL["id_by_keys"], client_id, group_key, event_key)
        return None if row is None else row["id"]

    async def group_members(
        self, client_id: str, group_key: str, after: Position, limit: int
    ) -> list[Member]:
        """Return a group's callbacks after a position, oldest first."""
        rows = await self._database.fetch(SQL["group_members"], client_id, group_key, *after, limit)
        return [
            Member(
                (row["created_at"], row["id"]),
                Status(row["status"]) if row["status"] is not None else None,
                row["unfinished"],
            )
            for row in rows
        ]

    async def page(
        self,
        client_id: str,
        before: Position,
        limit: int,
        *,
        group_key: str | None = None,
        event_key: str | None = None,
    ) -> list[Listed]:
        """Return a client's callbacks, newest first: all, or those with these keys."""
        if event_key is not None:
            return await self._page("key_page", client_id, before, limit, group_key, event_key)
        if group_key is not None:
            return await self._page("group_page", client_id, before, limit, group_key)
        return await self._page("client_page", client_id, before, limit)

    async def failed_page(self, client_id: str, before: Position, limit: int) -> list[Listed]:
        """Return a client's failed callbacks, from the last failure on."""
        return await self._page("failed_page", client_id, before, limit)

    async def _page(
        self, name: str, client_id: str, before: Position, limit: int, *keys: str | None
    ) -> list[Listed]:
        rows = await self._database.fetch(SQL[name], client_id, *before, limit, *keys)
        return [Listed((row["at"], row["id"]), row["size"]) for row in rows]

    async def states(self, ids: Sequence[UUID]) -> dict[UUID, tuple[str, str | None]]:
        """Return the status and the group of callbacks, without their contexts."""
        rows = await self._database.fetch(SQL["states"], ids)
        return {row["id"]: (row["status"], row["group_key"]) for row in rows}

    async def statuses(self, ids: Sequence[UUID]) -> dict[UUID, Any]:
        """Return the rows for `CallbackStatus`, as `asyncpg.Record`."""
        rows = await self._database.fetch(SQL["statuses"], ids)
        return {row["id"]: row for row in rows if row["status"] is not None}

    async def failed_ids(  # noqa: PLR0913 - the filters
        self,
        client_id: str,
        *,
        id_: UUID | None,
        group_key: str | None,
        after: datetime | None,
        before: datetime | None,
        limit: int,
    ) -> list[UUID]:
        """Return a client's failed callbacks in the order in which they failed."""
        rows = await self._database.fetch(
            SQL["failed_ids"], client_id, id_, group_key, after, before, limit
        )
        return [row["id"] for row in rows]

    async def restart(self, ids: Sequence[UUID]) -> list[UUID]:
        """Make failed callbacks due now; return those that were still failed."""
        return [row["id"] for row in await self._database.fetch(SQL["restart"], ids)]
