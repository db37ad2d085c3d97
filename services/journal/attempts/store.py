"""Reads entries. All methods raise StoreConnectionLostError."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from json import loads
from typing import Any, Final

from services.journal.attempts.search import AFTER, BEFORE, FIRST, LAST, Reference, Search, driven
from services.journal.reading import reading
from shared.contracts.journal import Entry, EntryKind, Gap
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.security.encryption import DecryptionError, SecretCipher

SQL: Final = queries("services.journal", "reads.sql")
# Entries that one statement looks at, and seconds after which no further one begins. A search for
# what is rare ends early, with a cursor.
WINDOW: Final = 10_000
SEARCH_TIME: Final = 0.05
# Scheduled callbacks of a search by key, and the latest entries with the key that name them.
MAX_SCHEDULES: Final = 200
_KEYED_WINDOW: Final = 1000
# Entries of a recurring callback that are looked at for one occurrence.
_OCCURRENCE_WINDOW: Final = 1000
# Entries that one read of the tail looks at.
TAIL_WINDOW: Final = 2000
MAX_GAPS: Final = 100
# Characters of the texts in a page. A page with longer ones ends early, so that it fits into a
# response: JSON has up to six bytes for a character.
MAX_PAGE_CHARACTERS: Final = 1_000_000

Place = tuple[datetime, int]  # the time and the sequence of an entry
OLDEST: Final[Place] = FIRST, BEFORE
NEWEST: Final[Place] = LAST, AFTER


@dataclass(frozen=True, slots=True)
class Found:
    """Entries, and the position after which the next page continues, if there is one."""

    entries: list[Entry]
    next: Place | None


class Entries:
    """The table `journal.entries`. A client id of None means all clients.

    cipher: decrypts responses. Without one, they are left out.
    monotonic: returns seconds.
    """

    def __init__(
        self, database: Database, cipher: SecretCipher | None, monotonic: Callable[[], float]
    ) -> None:
        self._database = database
        self._cipher = cipher
        self._monotonic = monotonic

    async def search(self, search: Search, before: Place, limit: int) -> Found:
        """Return the attempts before a position that match, the latest first."""
        before = min(before, (search.until, BEFORE))
        async with reading(self._database) as connection:
            if search.group_key is None and search.event_key is None:
                return await self._search(connection, search, before, limit)
            rows = await self._of_keys(connection, search, before, limit + 1)
        return self._page(rows, limit)

    async def _search(self, connection: Any, search: Search, before: Place, limit: int) -> Found:
        sql, values = driven(SQL["search"], search)
        deadline = self._monotonic() + SEARCH_TIME
        found: list[Any] = []
        while True:
            room = limit + 1 - len(found)
            rows = await connection.fetch(
                sql, *before, WINDOW, search.since, room, *search.filters, *values
            )
            found += [row for row in rows if row["matches"]]
            if len(found) > limit or not (rows and rows[-1]["last"]):
                return self._page(found, limit)
            before = rows[-1]["at"], rows[-1]["seq"]
            if self._monotonic() >= deadline:
                return replace(self._page(found, limit), next=before)

    async def _of_keys(
        self, connection: Any, search: Search, before: Place, limit: int
    ) -> list[Any]:
        """Return attempts of the scheduled callbacks with these keys."""
        # An event key is usually rarer than its group.
        column = "group_key" if search.event_key is None else "event_key"
        value = search.event_key or search.group_key
        keyed = await connection.fetch(
            SQL["keyed"].format(key=column),
            *(value, *NEWEST, search.client_id, _KEYED_WINDOW, search.group_key, search.event_key),
        )
        ids = [row["schedule_id"] for row in keyed[:MAX_SCHEDULES]]
        rows: list[Any] = await connection.fetch(
            SQL["of_schedules"], ids, *before, search.since, limit, *search.filters
        )
        return rows

    async def story(
        self, ref: Reference, client_id: str | None, before: Place, limit: int
    ) -> Found:
        """Return the last entries of a callback before a position, the latest first."""
        whole = ref.schedule_id if ref.occurrence is None else None
        async with reading(self._database) as connection:
            rows = await connection.fetch(
                SQL["story_before"], ref.callback_id, *before, limit + 1, client_id, whole
            )
            if ref.occurrence is not None:
                rows += await connection.fetch(
                    SQL["of_occurrence"],
                    *(ref.schedule_id, *before, ref.occurrence, client_id, _OCCURRENCE_WINDOW),
                )
        unique = {row["seq"]: row for row in rows}
        return self._page(sorted(unique.values(), key=_place, reverse=True), limit)

    async def attempts(
        self, ref: Reference, client_id: str | None, after: Place, limit: int
    ) -> Found:
        """Return the attempts of a callback after a position, the first one first."""
        schedule_id = ref.schedule_id if ref.occurrence is None else None
        async with reading(self._database) as connection:
            rows = await connection.fetch(
                SQL["attempts_after"],
                *(ref.callback_id, *after, limit + 1, client_id, schedule_id),
            )
        unique = {row["seq"]: row for row in rows}
        return self._page(sorted(unique.values(), key=_place), limit)

    async def kept(self, callback_ids: Collection[str], client_id: str | None) -> bool:
        """Return whether the request of one of these callbacks is kept."""
        row = await self._database.fetchrow(SQL["kept"], list(callback_ids), client_id)
        return bool(row["kept"])

    async def gaps(self, since: datetime) -> list[Gap]:
        """Return the gaps that were found since a time, the first one first."""
        rows = await self._database.fetch(SQL["gaps"], since, MAX_GAPS)
        return [Gap(**row) for row in rows]

    async def last_seq(self) -> int:
        """Return the sequence of the last entry, or 0."""
        return int((await self._database.fetchrow(SQL["last_seq"]))["seq"])

    async def tail(  # noqa: PLR0913 - the filters of the tail
        self,
        after: int,
        limit: int,
        *,
        client_id: str | None = None,
        target: str | None = None,
        outcome: str | None = None,
        kinds: Sequence[EntryKind] | None = None,
    ) -> tuple[list[Entry], int]:
        """Return the next entries that match, the first one first, and the position after them."""
        names = None if kinds is None else [kind.value for kind in kinds]
        async with reading(self._database) as connection:
            rows = await connection.fetch(
                SQL["tail"],
                *(after, max(TAIL_WINDOW, limit), limit, client_id, target, outcome, names),
            )
        found = [self._entry(row) for row in rows if row["seq"] is not None]
        if len(found) == limit:
            return found, found[-1].seq
        return found, rows[0]["position"] or after

    async def clients(self, prefix: str, limit: int) -> list[str]:
        """Return the client ids that begin with a prefix, in order."""
        async with reading(self._database) as connection:
            rows = await connection.fetch(SQL["clients"], prefix, limit)
        return [row["client_id"] for row in rows]

    def _page(self, rows: Sequence[Any], limit: int) -> Found:
        """Return the first `limit` rows; one more shows that another page follows."""
        entries: list[Entry] = []
        characters = 0
        for row in rows[:limit]:
            entry = self._entry(row)
            characters += len(entry.reason or "") + len(entry.response or "")
            if entries and characters > MAX_PAGE_CHARACTERS:
                break
            entries.append(entry)
        more = len(rows) > len(entries)
        return Found(entries, _place(rows[len(entries) - 1]) if more else None)

    def _entry(self, row: Any) -> Entry:
        return Entry(
            seq=row["seq"],
            at=row["at"],
            kind=row["kind"],
            callback_id=row["callback_id"],
            schedule_id=row["schedule_id"],
            message_id=row["message_id"],
            client_id=row["client_id"] or None,
            target=row["target"],
            attempt=row["attempt"],
            dispatch=row["dispatch"],
            status_code=row["status_code"],
            duration=row["duration"],
            outcome=row["outcome"],
            reason=row["reason"],
            response=self._opened(row["response"]),
            next_at=row["next_at"],
            trace_id=row["trace_id"],
            group_key=row["group_key"],
            event_key=row["event_key"],
            detail=loads(row["detail"]) if row["detail"] else {},
        )

    def _opened(self, sealed: bytes | None) -> str | None:
        """Return a response, or None if it is not kept or its key is not configured."""
        if sealed is None or self._cipher is None:
            return None
        try:
            return self._cipher.decrypt(sealed).decode(errors="replace")
        except DecryptionError:
            return None


def _place(row: Any) -> Place:
    return row["at"], row["seq"]
