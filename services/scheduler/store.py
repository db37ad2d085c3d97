"""The scheduler's events in PostgreSQL. Every method is one statement or one transaction.

All raise StoreConnectionLostError when the database is unavailable, slow or full. Whether they took
effect is then unknown. Each is safe to repeat.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from services.scheduler.domain import ScheduledCallback, rules
from services.scheduler.messages import Content
from shared.contracts.schedules import Status
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.scheduler")
BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
DAYS_AHEAD: Final = 7  # that partitions of the history are made

Decide = Callable[[Mapping[UUID, ScheduledCallback], datetime], Iterable[ScheduledCallback]]


@dataclass(frozen=True, slots=True)
class Order:
    """An order to create an event. `secret` is sealed; with neither `run_at` nor `delay`, now."""

    id: UUID
    client_id: str
    group_key: str | None
    event_key: str | None
    fingerprint: bytes | None
    content: Content
    secret: bytes | None
    lease: float
    stop_after: float
    rules: str | None
    traceparent: str | None
    run_at: datetime | None
    delay: float


@dataclass(frozen=True, slots=True)
class Known:
    """An event that was created before, and where it is."""

    id: UUID
    status: Status
    run_at: datetime
    fingerprint: bytes | None


@dataclass(frozen=True, slots=True)
class Claim:
    """An event that is ours to fire until `event.next_at`, and what it takes; `now` is when."""

    event: ScheduledCallback
    content: Content
    secret: bytes | None
    traceparent: str | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Past:
    """How an event ended."""

    event: ScheduledCallback
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class Inserted:
    """What became of orders: `made` their events, `due` those to be fired by us at once."""

    made: Mapping[UUID, ScheduledCallback]
    due: Sequence[Claim]
    now: datetime | None


class Store:
    """The schema `scheduler`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def now(self) -> datetime:
        """What time it is: the database's clock is the only one."""
        now: datetime = (await self._database.fetchrow(SQL["now"]))["now"]
        return now

    async def create(self, orders: Sequence[Order]) -> Inserted:
        """Insert what is new; an order whose id or keys are used is left out.

        Two orders with the same id or keys must not be in one call: the first would win unheard.
        """
        columns = zip(*map(_values, orders), strict=True)
        rows = await self._database.fetch(SQL["create"], *map(list, columns))
        by_id = {order.id: order for order in orders}
        made = {}
        due = []
        for row in rows:
            order = by_id[row["id"]]
            event = ScheduledCallback(
                id=order.id,
                client_id=order.client_id,
                group_key=order.group_key,
                event_key=order.event_key,
                run_at=row["run_at"],
                next_at=row["next_at"],
                status=Status.DISPATCHED if row["in_flight"] else Status.SCHEDULED,
                in_flight=row["in_flight"],
                dispatch=int(row["in_flight"]),
                stop_at=row["stop_at"],
                rules=rules(order.rules),
            )
            made[event.id] = event
            if event.in_flight:
                due.append(Claim(event, order.content, order.secret, order.traceparent, row["now"]))
        return Inserted(made, due, rows[0]["now"] if rows else None)

    async def known(self, ids: Sequence[UUID]) -> dict[UUID, Known]:
        """Those of the ids that are in use."""
        rows = await self._database.fetch(SQL["known"], ids)
        return {
            row["id"]: Known(row["id"], Status(row["status"]), row["run_at"], row["fingerprint"])
            for row in rows
            if row["status"] is not None
        }

    async def claim(self, limit: int, *, after: datetime = BEGINNING) -> list[Claim]:
        """Lease the oldest due events, at most `limit`, of those due after that moment."""
        rows = await self._database.fetch(SQL["claim"], after, limit)
        return [
            Claim(
                _event(row),
                Content(
                    row["context"],
                    row["message"],
                    row["headers"],
                    row["exchange"],
                    row["routing_key"],
                    row["format"],
                ),
                row["secret"],
                row["traceparent"],
                row["now"],
            )
            for row in rows
        ]

    async def next_due(
        self, within: float, *, after: datetime = BEGINNING
    ) -> tuple[datetime | None, datetime]:
        """When the next event wants attention, if within so many seconds; and what time it is.

        Only events due after that moment are looked at.
        """
        row = await self._database.fetchrow(SQL["next_due"], after, within)
        return row["next_at"], row["now"]

    async def release(self, events: Sequence[ScheduledCallback], delay: float) -> None:
        """Give back what was claimed and could not be published, to be due in `delay` seconds."""
        await self._database.execute(
            SQL["release"],
            [event.id for event in events],
            [event.dispatch for event in events],
            delay,
        )

    async def change(self, ids: Sequence[UUID], decide: Decide) -> datetime:
        """Lock live events, let `decide` say what becomes of them, and write that; the moment.

        What `decide` does not return stays as it is. It may be called more than once.
        """
        while True:
            try:
                return await self._change(ids, decide)
            except asyncpg.CheckViolationError:
                # The history has no partition for this day: the clock has jumped.
                await self.make_partitions()

    async def _change(self, ids: Sequence[UUID], decide: Decide) -> datetime:
        async with self._database.transaction() as connection:
            rows = await connection.fetch(SQL["lock"], ids)
            now: datetime = rows[0]["now"] if rows else await connection.fetchval("SELECT now()")
            changed = list(decide({row["id"]: _event(row) for row in rows}, now))
            live = [event for event in changed if not event.ended]
            over = [event for event in changed if event.ended]
            if live:
                await connection.execute(
                    SQL["save"], *map(list, zip(*map(_state, live), strict=True))
                )
            if over:
                await connection.execute(
                    SQL["finish"], *map(list, zip(*map(_end, over), strict=True))
                )
        return now

    async def past(self, ids: Sequence[UUID]) -> dict[UUID, Past]:
        """How those of the events ended that have."""
        rows = await self._database.fetch(SQL["past"], ids)
        return {
            row["id"]: Past(
                ScheduledCallback(
                    id=row["id"],
                    client_id=row["client_id"],
                    group_key=row["group_key"],
                    event_key=row["event_key"],
                    run_at=row["run_at"],
                    next_at=row["run_at"],
                    occurrence=row["occurrence"],
                    status=Status(row["status"]),
                    dispatch=row["dispatch"],
                    attempts=row["attempts"],
                    last_error=row["last_error"],
                    rules=rules(row["rules"]),
                ),
                row["finished_at"],
            )
            for row in rows
        }

    async def find(
        self, client_id: str, id_: UUID | None, group_key: str | None, event_key: str | None
    ) -> UUID | None:
        """The id of a client's event; None if it has no such event."""
        if id_ is not None:
            row = await self._database.fetchrow(SQL["id_of_client"], client_id, id_)
        else:
            row = await self._database.fetchrow(SQL["id_of_keys"], client_id, group_key, event_key)
        return None if row is None else row["id"]

    async def group(
        self, client_id: str, group_key: str, after: tuple[datetime, UUID], limit: int
    ) -> list[tuple[datetime, UUID]]:
        """Events of a group, oldest first, from a position on."""
        rows = await self._database.fetch(SQL["group_ids"], client_id, group_key, *after, limit)
        return [(row["created_at"], row["id"]) for row in rows]

    async def page(
        self,
        client_id: str,
        before: tuple[datetime, UUID],
        limit: int,
        *,
        group_key: str | None = None,
        failed: bool = False,
    ) -> list[tuple[datetime, UUID]]:
        """Positions of a client's events, newest first: all, of a group, or the failed ones."""
        name = "failed_page" if failed else "client_page" if group_key is None else "group_page"
        more = () if failed or group_key is None else (group_key,)
        rows = await self._database.fetch(SQL[name], client_id, *before, limit, *more)
        return [(row["position"], row["id"]) for row in rows]

    async def statuses(self, ids: Sequence[UUID]) -> dict[UUID, Any]:
        """What status answers tell of events, as `asyncpg.Record`."""
        rows = await self._database.fetch(SQL["status"], ids)
        return {row["id"]: row for row in rows if row["status"] is not None}

    async def failed(  # noqa: PLR0913 - the filters
        self,
        client_id: str,
        *,
        id_: UUID | None,
        group_key: str | None,
        after: datetime | None,
        before: datetime | None,
        limit: int,
    ) -> list[UUID]:
        """A client's failed events, those that failed first before the others."""
        rows = await self._database.fetch(
            SQL["failed"], client_id, id_, group_key, after, before, limit
        )
        return [row["id"] for row in rows]

    async def restart(self, ids: Sequence[UUID]) -> list[UUID]:
        """Begin failed events again, due now; those that were still failed."""
        return [row["id"] for row in await self._database.fetch(SQL["restart"], ids)]

    async def make_partitions(self) -> None:
        """Make the history's partitions for today and the days ahead."""
        today = (await self.now()).date()
        for day in (today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)):
            async with self._database.transaction() as connection:
                # A new partition locks the whole history for a moment: do not queue up for that
                # behind a reader while others queue up behind us.
                await connection.execute("SET LOCAL lock_timeout = '1s'")
                await connection.execute(_make_partition(day))

    async def old_partitions(self, retention: timedelta) -> list[str]:
        """The partitions that hold nothing younger than the retention, oldest first."""
        oldest = partition((await self.now() - retention).date())
        rows = await self._database.fetch(SQL["partitions"])
        return [row["name"] for row in rows if row["name"] < oldest]

    async def forget(self, name: str, after: UUID, limit: int) -> UUID | None:
        """Delete orders whose events are in a partition, by id from one on; the last one seen."""
        row = await self._database.fetchrow(
            f"""WITH old AS (SELECT id FROM scheduler.{name} WHERE id > $1 ORDER BY id LIMIT $2),
            gone AS (DELETE FROM scheduler.orders WHERE id IN (SELECT id FROM old))
            SELECT id FROM old ORDER BY id DESC LIMIT 1""",  # noqa: S608 - from pg_class
            after,
            limit,
        )
        return None if row is None else row["id"]

    async def drop(self, name: str) -> None:
        """Drop a partition."""
        async with self._database.transaction() as connection:
            await connection.execute("SET LOCAL lock_timeout = '1s'")
            await connection.execute(f"DROP TABLE scheduler.{name}")


def partition(day: date) -> str:
    """The name of a day's partition; they sort by day."""
    return f"history_{day:%Y%m%d}"


def _make_partition(day: date) -> str:
    return (
        f"CREATE TABLE IF NOT EXISTS scheduler.{partition(day)} PARTITION OF scheduler.history"
        f" FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
    )


def _values(order: Order) -> tuple[Any, ...]:
    content = order.content
    return (
        order.id,
        order.client_id,
        order.group_key,
        order.event_key,
        order.fingerprint,
        content.context,
        content.message,
        content.headers,
        order.secret,
        content.exchange,
        content.routing_key,
        content.format,
        order.lease,
        order.stop_after,
        order.rules,
        order.traceparent,
        order.run_at,
        order.delay,
    )


def _event(row: Any) -> ScheduledCallback:
    return ScheduledCallback(
        row["id"],
        row["client_id"],
        row["group_key"],
        row["event_key"],
        row["run_at"],
        row["next_at"],
        row["occurrence"],
        Status(row["status"]),
        row["in_flight"],
        row["cancelled"],
        row["dispatch"],
        row["first_dispatch"],
        row["retries"],
        row["attempts"],
        row["tries"],
        row["try_at"],
        row["stop_at"],
        row["last_error"],
        rules(row["rules"]),
    )


def _state(event: ScheduledCallback) -> tuple[Any, ...]:
    return (
        event.id,
        event.run_at,
        event.next_at,
        event.occurrence,
        event.status,
        event.in_flight,
        event.cancelled,
        event.dispatch,
        event.first_dispatch,
        event.retries,
        event.attempts,
        event.tries,
        event.try_at,
        event.stop_at,
        event.last_error,
    )


def _end(event: ScheduledCallback) -> tuple[Any, ...]:
    return event.id, event.client_id, event.status, event.attempts, event.last_error
