"""The index of dead letters, which stay in their queues, and the counts of their groups.

Counts change in the transaction that changes their letters. All methods raise
StoreConnectionLostError if the database is unavailable.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel

from services.journal.dead.reasons import plain, reason_key
from services.journal.dead.selection import Selection
from services.journal.reading import reading
from shared.contracts.journal import Filter
from shared.contracts.journal_dead import Group, Letter
from shared.contracts.journal_facts import LetterDead, LetterDiscarded, LetterRedriven
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.journal", "dead.sql")
# Characters of an id in the index.
_MAX_ID: Final = 255
# Letters that one statement counts, or looks at for a page.
COUNT_WINDOW: Final = 50_000
PAGE_WINDOW: Final = 10_000
# Seconds after which no further statement of a page begins.
SEARCH_TIME: Final = 0.05
_LAST_SEQ: Final = (1 << 63) - 1

Position = tuple[datetime, int]  # the time and the number of a letter
NEWEST: Final[Position] = datetime.max.replace(tzinfo=UTC), _LAST_SEQ


class Found(NamedTuple):
    """A page of letters, and the position after which the next one continues, if there is one."""

    letters: list[Letter]
    next: Position | None


class LetterRow(NamedTuple):
    """A row of the index, in the order of the query's arguments."""

    queue: str
    letter_id: str
    logical_id: str | None
    client_id: str | None
    target: str | None
    reason: str
    reason_key: str
    trace_id: str | None
    at: datetime


def row(  # noqa: PLR0913 - the columns of the index
    queue: str,
    letter_id: str,
    *,
    logical_id: str | None,
    client_id: str | None,
    target: str | None,
    reason: str,
    trace_id: str | None,
    at: datetime,
) -> LetterRow:
    """Return a row with texts that PostgreSQL can store."""
    return LetterRow(
        queue,
        letter_id,
        None if logical_id is None else plain(logical_id)[:_MAX_ID],
        None if client_id is None else plain(client_id)[:_MAX_ID],
        target,
        plain(reason),
        reason_key(reason),
        trace_id,
        at,
    )


class LetterIndex:
    """Reads and changes the index."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Begin a transaction for the methods that need a connection."""
        return self._database.transaction()

    async def record(self, connection: Any, facts: Sequence[BaseModel]) -> None:
        """Apply the facts about dead letters, in the transaction that stores all facts."""
        dead = [fact for fact in facts if type(fact) is LetterDead]
        moved = [fact for fact in facts if type(fact) in (LetterRedriven, LetterDiscarded)]
        if dead:
            await self.add(connection, map(_row_of, dead))
        if moved:
            await self._remove(
                connection,
                [(fact.queue, fact.letter_id) for fact in moved],  # type: ignore[attr-defined]
            )

    async def add(self, connection: Any, rows: Iterable[LetterRow]) -> None:
        """Add letters that are neither known nor moved."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        if columns:
            await connection.execute(SQL["add_letters"], *columns)

    async def remove(self, connection: Any, queue: str, ids: Iterable[str]) -> int:
        """Remove letters that were moved, remember that, and return how many were known."""
        return await self._remove(connection, [(queue, letter_id) for letter_id in ids])

    async def forget(self, connection: Any, queue: str, ids: Iterable[str]) -> int:
        """Remove letters that were not found in their queue, and return how many were known.

        They are found again if another consumer has held them.
        """
        letters = [(queue, letter_id) for letter_id in ids]
        return await self._remove(connection, letters, moved=False)

    async def _remove(
        self, connection: Any, letters: Sequence[tuple[str, str]], *, moved: bool = True
    ) -> int:
        queues, ids = zip(*letters, strict=True)
        count: int = await connection.fetchval(
            SQL["remove_letters"], list(queues), list(ids), moved
        )
        return count

    async def moved(self, queue: str, ids: Iterable[str]) -> frozenset[str]:
        """Return those of these letters that were moved before."""
        rows = await self._database.fetch(SQL["moved_letters"], queue, list(ids))
        return frozenset(each["letter_id"] for each in rows)

    async def forget_moved(self, connection: Any, queue: str, ids: Sequence[str]) -> None:
        """Forget that letters were moved, because they may be new ones with the same content."""
        if ids:
            await connection.execute(SQL["forget_moved"], queue, ids)

    async def after(self, queue: str, seq: int, last: int, limit: int) -> list[tuple[int, str]]:
        """Return the numbers and ids of the letters between two numbers, in their order."""
        rows = await self._database.fetch(SQL["letters_after"], queue, seq, last, limit)
        return [(each["seq"], each["letter_id"]) for each in rows]

    async def selection(self, connection: Any, queue: str, chosen: Filter) -> Selection:
        """Return the selection of a filter, whose reason may be the key of a group."""
        if chosen.reason is not None:
            is_group = await connection.fetchval(SQL["is_group"], queue, chosen.reason)
            return Selection(queue, chosen, chosen.reason if is_group else None)
        return Selection(queue, chosen)

    async def last(self, connection: Any, queue: str) -> int:
        """Return the number of the last letter of a queue, 0 without one."""
        last: int = await connection.fetchval(SQL["last_letter"], queue)
        return last

    async def select_now(self, queue: str, chosen: Filter) -> tuple[Selection, int]:
        """Return the selection of the letters that match now, and how many there are.

        Letters up to its last one are not added later, so nothing is locked while they are counted.
        """
        async with self._database.transaction() as connection:
            await connection.execute(SQL["lock_letters"])
            selection = await self.selection(connection, queue, chosen)
            last = await self.last(connection, queue)
            matching = None
            if selection.is_of_groups:
                matching = await self._count_groups(connection, selection)
        selection = replace(selection, last=last)
        return selection, await self.count(selection) if matching is None else matching

    async def count(self, selection: Selection) -> int:
        """Return how many letters match. No statement reads more than COUNT_WINDOW letters."""
        if selection.is_of_groups:
            async with reading(self._database) as connection:
                return await self._count_groups(connection, selection)
        where, arguments = selection.where(first=5)
        sql = SQL["count_window"].replace("{where}", where)
        count = after = 0
        last = _LAST_SEQ if selection.last is None else selection.last
        while True:
            async with reading(self._database) as connection:
                window = await connection.fetchrow(
                    sql, selection.queue, after, last, COUNT_WINDOW, *arguments
                )
            count += int(window["matching"])
            if window["read"] < COUNT_WINDOW:
                return count
            after = window["last"]

    async def _count_groups(self, connection: Any, selection: Selection) -> int:
        count: int = await connection.fetchval(
            SQL["count_groups"], selection.queue, selection.reason_key, selection.target
        )
        return count

    async def matching(self, selection: Selection, ids: Iterable[str]) -> frozenset[str]:
        """Return those of these letters that match."""
        where, arguments = selection.where()
        sql = (
            f"SELECT letter_id FROM journal.letters WHERE {where}"  # noqa: S608 - constants
            f" AND letter_id = ANY(${len(arguments) + 1}::text[])"
        )
        rows = await self._database.fetch(sql, *arguments, list(ids))
        return frozenset(each["letter_id"] for each in rows)

    async def page(self, selection: Selection, before: Position, limit: int) -> Found:
        """Return matching letters before a position, the latest first.

        A search for what is rare ends early, with a position to continue at.
        """
        inner, bounds = selection.indexed.where(first=5)
        outer, arguments = selection.where(first=5 + len(bounds))
        sql = SQL["page"].replace("{inner}", inner).replace("{outer}", outer)
        now = asyncio.get_running_loop().time
        deadline = now() + SEARCH_TIME
        found: list[Any] = []
        while True:
            async with reading(self._database) as connection:
                rows = await connection.fetch(
                    sql, *before, PAGE_WINDOW, limit + 1 - len(found), *bounds, *arguments
                )
            found += [row for row in rows if row["matches"]]
            if len(found) > limit:
                return Found([_letter(row) for row in found[:limit]], _position(found[limit - 1]))
            if not (rows and rows[-1]["last"]):
                return Found([_letter(row) for row in found], None)
            before = _position(rows[-1])
            if now() >= deadline:
                return Found([_letter(row) for row in found], before)

    async def groups(
        self, connection: Any, queue: str, by: Literal["reason", "target"], limit: int
    ) -> list[Group]:
        """Return the groups of a queue, the largest first."""
        rows = await connection.fetch(SQL[f"groups_by_{by}"], queue, limit)
        return [Group(key=each["key"], count=each["count"]) for each in rows]

    async def total(self, connection: Any, queue: str) -> int:
        """Return the number of letters of a queue."""
        total: int = await connection.fetchval(SQL["total"], queue)
        return total

    async def totals(self) -> Mapping[str, int]:
        """Return the number of letters by queue. A queue without letters may be missing."""
        rows = await self._database.fetch(SQL["count_by_queue"])
        return {each["queue"]: each["count"] for each in rows}

    async def clean_up(self) -> None:
        """Delete empty groups, and what is known of letters that were moved a day ago."""
        await self._database.execute(SQL["delete_empty_counts"])
        await self._database.execute(SQL["delete_moved"])


_SHOWN: Final = ("letter_id", "logical_id", "client_id", "target", "reason", "at")


def _letter(row: Any) -> Letter:
    return Letter(**{name: row[name] for name in _SHOWN})


def _position(row: Any) -> Position:
    return row["at"], row["seq"]


def _row_of(fact: LetterDead) -> LetterRow:
    return row(
        fact.queue,
        fact.letter_id[:_MAX_ID],
        logical_id=fact.logical_id,
        client_id=fact.client_id,
        target=fact.target,
        reason=fact.reason,
        trace_id=fact.trace_id,
        at=fact.at,
    )
