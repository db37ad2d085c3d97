"""Kept requests, and the callbacks that match. All methods raise StoreConnectionLostError."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from services.journal.reading import reading
from services.journal.replays.sending import Callback
from shared.contracts.journal import Filter
from shared.errors import PermanentError
from shared.postgres.pool import Database, StoreConnectionLostError
from shared.postgres.queries import queries

_SQL: Final = queries("services.journal", "replays.sql")
# Kept requests of one id: deliveries of one message to several endpoints.
MAX_KEPT: Final = 100
# Entries that one statement looks at.
WINDOW: Final = 2000

# By how much the window shrinks if a statement takes too long.
SHRINK: Final = 50

Place = tuple[datetime, int]  # the time and the sequence of an entry
FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)
LAST: Final = datetime(9999, 12, 31, tzinfo=UTC)


class SearchTooSlowError(PermanentError):
    """A search reaches the time limit of a statement, and would do so again."""


@dataclass(frozen=True, slots=True)
class KeptRow:
    """A kept request, encrypted. `client_id` '' is the anonymous client.

    clients: how many clients have used the id.
    """

    callback_id: str
    client_id: str
    reference: str
    at: datetime
    sealed: bytes
    clients: int


@dataclass(frozen=True, slots=True)
class Selection:
    """The callbacks of a replay: those whose last attempt up to the entry `horizon` matches.

    client_id: None is all clients.
    """

    filter: Filter
    failed: bool
    client_id: str | None
    horizon: int

    @property
    def start(self) -> Place:
        """Return the place before the first entry."""
        return self.filter.since or FIRST, -1


@dataclass(frozen=True, slots=True)
class Matches:
    """Callbacks that match, and the place after which the search continues; None at the end."""

    found: list[Callback]
    next: Place | None


class Replays:
    """Reads what replays need."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def kept(self, id_: str, client_id: str | None) -> list[KeptRow]:
        """Return the kept requests of an id: those of the client that has used it last.

        The id is a `webhook-id`, or that of a scheduled callback; then it is the last dispatch.
        """
        for callback_id in (id_, await self._last_dispatched(id_, client_id)):
            if callback_id is not None:
                async with reading(self._database) as connection:
                    rows = await connection.fetch(_SQL["kept"], callback_id, client_id, MAX_KEPT)
                if rows:
                    return [KeptRow(*row) for row in rows]
        return []

    async def is_known(self, id_: str, client_id: str | None) -> bool:
        """Return whether the journal has an entry about this callback."""
        async with reading(self._database) as connection:
            known: bool = await connection.fetchval(_SQL["known"], id_, client_id)
        return known or await self._last_dispatched(id_, client_id) is not None

    async def horizon(self) -> int:
        """Return the sequence of the last entry."""
        horizon: int = (await self._database.fetchrow(_SQL["horizon"]))["seq"]
        return horizon

    async def matching(
        self, selection: Selection, after: Place, limit: int, *, kept: bool = True
    ) -> Matches:
        """Return the next callbacks that match: up to `limit` of the next WINDOW entries.

        With `kept`, they have their kept requests.

        The entries up to the horizon never change. So a search that is repeated finds the same
        callbacks, each of them once.

        Raises:
            SearchTooSlowError: too many attempts have the same id.
        """
        rows = await self._window(selection, after, limit, kept=kept)
        found = [
            Callback(row["callback_id"], row["client_id"], row["reference"], row["sealed"])
            for row in rows
            if row["matches"]
        ]
        if not rows or (len(found) < limit and not rows[-1]["last"]):
            return Matches(found, None)
        return Matches(found, (rows[-1]["at"], rows[-1]["seq"]))

    async def _window(
        self, selection: Selection, after: Place, limit: int, *, kept: bool
    ) -> list[Any]:
        """Return the rows of the next entries. If that takes too long, look at fewer of them."""
        query, window = selection.filter, WINDOW
        while True:
            try:
                async with reading(self._database) as connection:
                    rows: list[Any] = await connection.fetch(
                        _SQL["matching"].format(source=_source(selection)),
                        *(*after, query.until or LAST, selection.horizon, window, limit),
                        *(selection.client_id, query.target, query.reason, kept),
                    )
                    return rows
            except StoreConnectionLostError as error:
                if not isinstance(error.__cause__, asyncpg.QueryCanceledError):
                    raise
            window //= SHRINK
            if not window:
                raise SearchTooSlowError(
                    f"Cannot search after {after[0].isoformat()}: too many attempts have the same"
                    " id. Set a later `since` in the filter."
                )

    async def count(self, selection: Selection) -> int:
        """Return how many callbacks match."""
        count, place = 0, selection.start
        while True:
            matches = await self.matching(selection, place, WINDOW, kept=False)
            count += len(matches.found)
            if matches.next is None:
                return count
            place = matches.next

    async def _last_dispatched(self, id_: str, client_id: str | None) -> str | None:
        try:
            schedule_id = UUID(id_)
        except ValueError:
            return None
        async with reading(self._database) as connection:
            found: str | None = await connection.fetchval(
                _SQL["last_dispatched"], schedule_id, client_id
            )
        return found


def _source(selection: Selection) -> str:
    """Return the subquery of the entries to look at. Its conditions decide which index is read."""
    conditions = ""
    if selection.client_id is not None:
        conditions += " AND client_id = $7"
    if selection.filter.target is not None:
        conditions += " AND target = $8"
    name = "failed_entries" if selection.failed else "delivered_entries"
    return _SQL[name].replace("{conditions}", conditions)
