"""Users, tokens and messages in PostgreSQL, and the numbering of user events.

All methods raise StoreConnectionLostError when the database is unavailable, slow or full. The
effect is then unknown; each method is safe to repeat.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from services.subscriptions.deliveries.store import cancel_read
from services.subscriptions.messenger.domain import (
    UNKNOWN_USER,
    AppendedEvent,
    AppendResult,
    NewEvent,
    Outcome,
    Page,
    StoredEvent,
    new_message,
)
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.subscriptions", "messenger.sql")
# Bytes of a page of events, which the gateway holds about four times until a client has read it.
MAX_PAGE_BYTES: Final = 256 << 10

# Adds the deliveries of new events, in the same transaction.
AddDeliveries = Callable[[Any, Sequence[AppendedEvent]], Awaitable[None]]


class InvalidCursorError(Exception):
    """The cursor belongs to another user, or is in the future."""


class Messenger:
    """The tables of the messenger; several processes may use them at the same time."""

    def __init__(self, database: Database, add_deliveries: AddDeliveries) -> None:
        self._database = database
        self._add_deliveries = add_deliveries

    async def register(self, name: str, password_hash: bytes, request_id: str) -> int | None:
        """Return the id of a new user, or None if the name is taken by another request."""
        row = await self._database.fetchrow(SQL["register"], name, password_hash, request_id)
        if row is None:
            row = await self._database.fetchrow(SQL["registered"], name, request_id)
        return None if row is None else row["id"]

    async def password(self, name: str) -> tuple[int, bytes] | None:
        """Return the id and the password hash of a user, or None if there is no such user."""
        row = await self._database.fetchrow(SQL["password"], name)
        return None if row is None else (row["id"], row["password_hash"])

    async def sign_in(self, token: bytes, user_id: int, lifetime: timedelta) -> datetime:
        """Make a token valid, and return when it expires."""
        seconds = lifetime.total_seconds()
        row = await self._database.fetchrow(SQL["sign_in"], token, user_id, seconds)
        expires_at: datetime = row["expires_at"]
        return expires_at

    async def user_of(self, token: bytes) -> int | None:
        """Return the user of a token, or None if it is not valid."""
        row = await self._database.fetchrow(SQL["token"], token)
        return None if row is None else row["user_id"]

    async def sign_out(self, token: bytes) -> int | None:
        """Revoke a token, and return its user, or None if it is not valid."""
        user_id = await self.user_of(token)
        if user_id is not None:
            await self._delete_tokens([token], [user_id])
        return user_id

    async def delete_expired_tokens(self, limit: int) -> int:
        """Delete at most `limit` tokens that have expired, and return the number deleted."""
        rows = await self._database.fetch(SQL["expired"], limit)
        if not rows:
            return 0
        return await self._delete_tokens(
            [row["hash"] for row in rows], [row["user_id"] for row in rows]
        )

    async def _delete_tokens(self, tokens: Sequence[bytes], user_ids: Sequence[int]) -> int:
        async with self._database.transaction() as connection:
            await connection.fetch(SQL["lock_users"], user_ids)
            count: int = await connection.fetchval(SQL["delete_tokens"], tokens)
        return count

    async def append(self, events: Sequence[NewEvent]) -> list[AppendResult]:
        """Append events with different ids to their users' streams, in one transaction.

        The events of a user are numbered in the given order. The transaction also adds their
        deliveries.
        """
        async with self._database.transaction() as connection:
            locked = await connection.fetch(SQL["lock_users"], [event.user_id for event in events])
            known = {row["id"] for row in locked}
            outcomes: dict[tuple[int, str], AppendResult] = {
                (row["user_id"], row["event_id"]): AppendResult(Outcome.REPEATED, row["event"])
                for row in await connection.fetch(
                    SQL["repeated"],
                    [event.user_id for event in events],
                    [event.event_id for event in events],
                )
            }
            new = [
                event
                for event in events
                if event.user_id in known and (event.user_id, event.event_id) not in outcomes
            ]
            if new:
                appended = await self._append_new(connection, new)
                await self._add_deliveries(connection, appended)
                outcomes |= {
                    (event.user_id, event.event_id): AppendResult(Outcome.APPENDED, event.event)
                    for event in appended
                }
        return [outcomes.get((event.user_id, event.event_id), UNKNOWN_USER) for event in events]

    async def _append_new(self, connection: Any, events: Sequence[NewEvent]) -> list[AppendedEvent]:
        texts = [event.event for event in events]
        sent = [
            (index, event.message)
            for index, event in enumerate(events)
            if event.message is not None
        ]
        if sent:
            rows = await connection.fetch(
                SQL["add_messages"],
                [message.from_id for _, message in sent],
                [message.to_id for _, message in sent],
                [message.text for _, message in sent],
            )
            rows.sort(key=lambda row: row["id"])
            for (index, message), row in zip(sent, rows, strict=True):
                texts[index] = new_message(message, row["id"], row["created_at"])
        rows = await connection.fetch(
            SQL["append"],
            [event.user_id for event in events],
            [event.event_id for event in events],
            [event.type for event in events],
            texts,
        )
        sequences = {(row["user_id"], row["event_id"]): row["sequence"] for row in rows}
        return [
            AppendedEvent(
                event.user_id,
                sequences[event.user_id, event.event_id],
                event.event_id,
                event.type,
                text,
            )
            for event, text in zip(events, texts, strict=True)
        ]

    async def read(self, token: bytes, limit: int) -> Page | None:
        """Return the events after the position of a token, and move the position after them.

        Return None if the token is not valid.
        """
        row = await self._database.fetchrow(SQL["token"], token)
        if row is None:
            return None
        if not row["has_events"]:  # most polls, which need no lock
            return Page(row["user_id"], row["position"], row["expires_at"], [])
        rows = await self._database.fetch(SQL["next_events"], token, limit, MAX_PAGE_BYTES)
        if not rows:
            return None
        first = rows[0]
        events = _events(rows) if first["sequence"] is not None else []
        if events and first["shares_position"]:
            async with self._database.transaction() as connection:
                await cancel_read(connection, token, events[-1].sequence)
        return Page(first["user_id"], first["position"], first["expires_at"], events)

    async def read_after(
        self, token: bytes, user_id: int, sequence: int, limit: int
    ) -> Page | None:
        """Return the events after a cursor. None if the token is not valid.

        Raises:
            InvalidCursorError: the cursor belongs to another user, or is in the future.
        """
        row = await self._database.fetchrow(SQL["token"], token)
        if row is None:
            return None
        if row["user_id"] != user_id:
            raise InvalidCursorError
        rows = await self._database.fetch(SQL["events"], user_id, sequence, limit, MAX_PAGE_BYTES)
        events = _events(rows)
        if not events:
            last = await self._database.fetchrow(SQL["last_sequence"], user_id)
            if sequence > last["sequence"]:
                raise InvalidCursorError
        return Page(user_id, sequence, row["expires_at"], events)

    async def prune(self, age: timedelta, limit: int) -> int:
        """Delete at most `limit` events, and as many messages, that are older than `age`."""
        seconds = age.total_seconds()
        deleted = 0
        for query in ("prune_events", "prune_messages"):
            status = await self._database.execute(SQL[query], seconds, limit)
            deleted += int(status.removeprefix("DELETE "))
        return deleted


def _events(rows: Iterable[Any]) -> list[StoredEvent]:
    return [StoredEvent(row["sequence"], row["type"], row["event"]) for row in rows]
