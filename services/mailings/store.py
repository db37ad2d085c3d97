"""Postings and their messages in PostgreSQL. Every method is one statement or one transaction.

All raise StoreConnectionLostError when the database is unavailable, slow or full. The effect is
then unknown. Writes of a slice check its lease, and raise LeaseLostError when another slice has
claimed the posting.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic_core import from_json, to_json

from services.mailings import domain
from shared.contracts.posting_requests import (
    MessageState,
    PostingMessage,
    PostingProgress,
    PostingState,
    PostingStatus,
)
from shared.contracts.postings import Posting
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.registry import Priority

SQL: Final = queries("services.mailings")
# Reasons for skipping in a status: the most frequent ones.
MAX_REASONS: Final = 100


class LeaseLostError(Exception):
    """Another slice has claimed the posting, so this one must not write any more."""


@dataclass(frozen=True, slots=True)
class NewPosting:
    """A posting to accept."""

    id: UUID
    posting: Posting
    fingerprint: bytes
    expires_at: datetime | None
    priority: Priority
    client_id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed posting.

    lease: the number of the claim.
    unfinished: whether the last slice may have published a part of a page.
    fetched_data: the data that the template fetches; None if it is not fetched yet.
    next_url: of the page after the checkpoint; None before the first page and after the last one.
    pages: the checkpoint.
    failures: failed slices since the checkpoint.
    """

    id: UUID
    lease: int
    unfinished: bool
    posting: Posting
    traceparent: str | None
    expires_at: datetime | None
    priority: Priority
    fetched_data: dict[str, Any] | None
    next_url: str | None
    pages: int
    receivers: int
    failures: int


class MessageRow(NamedTuple):
    """A new message; with a reason, it is skipped."""

    id: UUID
    user_id: str
    channel: str
    reason: str | None


class MessageChange(NamedTuple):
    """The new status of a message."""

    posting_id: UUID
    id: UUID
    status: MessageState
    reason: str | None


class DonePosting(NamedTuple):
    """A posting whose last message is settled, and its messages by status."""

    id: UUID
    from_event: str | None
    messages: dict[str, int]


class Store:
    """The schema `mailings`, which several processes may use at the same time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accept(self, postings: Sequence[NewPosting]) -> set[UUID]:
        """Store postings with different ids, and return the ids that are new."""
        rows = await self._database.fetch(
            SQL["accept"],
            [posting.id for posting in postings],
            [posting.client_id for posting in postings],
            [posting.fingerprint for posting in postings],
            [posting.posting.model_dump_json(exclude_none=True) for posting in postings],
            [posting.posting.from_event for posting in postings],
            [posting.traceparent for posting in postings],
            [posting.expires_at for posting in postings],
            [posting.priority for posting in postings],
        )
        return {row["id"] for row in rows}

    async def find(
        self, posting_id: UUID, client_id: str | None
    ) -> tuple[bytes, PostingState] | None:
        """Return the fingerprint and state of a posting; None if the client has no such posting."""
        row = await self._database.fetchrow(SQL["posting"], posting_id, client_id)
        return None if row is None else (row["fingerprint"], _state(row))

    async def status(self, posting_id: UUID, client_id: str | None) -> PostingStatus | None:
        """Return the status of a posting; None if the client has no such posting."""
        row = await self._database.fetchrow(SQL["posting"], posting_id, client_id)
        if row is None:
            return None
        skipped = (
            await self._database.fetch(SQL["skipped"], posting_id, MAX_REASONS)
            if row["skipped"]
            else ()
        )
        return PostingStatus(
            **_progress(row), skipped={row["reason"]: row["count"] for row in skipped}
        )

    async def postings(
        self,
        client_id: str | None,
        from_event: str | None,
        before: tuple[datetime, UUID],
        limit: int,
    ) -> list[PostingProgress]:
        """Return postings that a client can see, newest first, accepted before this position."""
        rows = await self._database.fetch(SQL["postings"], client_id, from_event, *before, limit)
        return [PostingProgress(**_progress(row)) for row in rows]

    async def messages(
        self, posting_id: UUID, after: UUID, status: MessageState | None, limit: int
    ) -> list[PostingMessage]:
        """Return messages of a posting, ordered by id."""
        rows = await self._database.fetch(SQL["messages"], posting_id, after, status, limit)
        return [PostingMessage(**dict(row.items())) for row in rows]

    async def claim(self, limit: int, *, lease: float, only_urgent: bool = False) -> list[Claim]:
        """Claim due postings for `lease` seconds, urgent ones first."""
        return [
            Claim(
                row["id"],
                row["lease"],
                row["unfinished"],
                _posting(row["body"]),
                row["traceparent"],
                row["expires_at"],
                row["priority"],
                None if row["fetched_data"] is None else from_json(row["fetched_data"]),
                row["next_url"],
                row["pages"],
                row["receivers"],
                row["failures"],
            )
            for row in await self._database.fetch(SQL["claim"], limit, lease, only_urgent)
        ]

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """Extend a claim by `lease` seconds; return False if it is lost."""
        row = await self._database.fetchrow(SQL["renew"], claim.id, claim.lease, lease)
        return row is not None

    async def save_fetched_data(self, claim: Claim, data: Mapping[str, Any]) -> None:
        """Store the data that the template of a posting fetches."""
        text = to_json(data).decode()
        await self._database.execute(SQL["save_fetched_data"], claim.id, claim.lease, text)

    async def add_messages(
        self, claim: Claim, page: int, rows: Sequence[MessageRow], *, remove_unfinished: bool
    ) -> set[UUID]:
        """Add messages of a page, and return the ids that are new.

        With `remove_unfinished`, it first removes the messages that an interrupted slice added
        for this page and later ones, unless they have been settled.
        """
        async with self._database.transaction() as connection:
            await _lock(connection, claim)
            created = skipped = 0
            if remove_unfinished:
                removed = await connection.fetchrow(SQL["remove_unfinished"], claim.id, page)
                created, skipped = -removed["created"], -removed["skipped"]
            columns = list(map(list, zip(*rows, strict=True))) or [[], [], [], []]
            added = await connection.fetch(SQL["add_messages"], claim.id, page, *columns)
            new = {row["id"] for row in added}
            new_created = sum(1 for row in rows if row.reason is None and row.id in new)
            created += new_created
            skipped += len(new) - new_created
            await connection.execute(SQL["count_messages"], claim.id, created, skipped)
        return new

    async def known_before(self, claim: Claim, page: int, ids: Collection[UUID]) -> int:
        """Return how many of these messages were added for earlier pages."""
        row = await self._database.fetchrow(SQL["known_before"], claim.id, ids, page)
        return int(row["count"])

    async def checkpoint(
        self, claim: Claim, *, pages: int, receivers: int, next_url: str | None, lease: float
    ) -> None:
        """Record that all messages of the first `pages` pages are published.

        Args:
            claim: the claim, which is extended by `lease` seconds.
            pages: the number of pages.
            receivers: the number of users on the last of them.
            next_url: the URL of the next page.
            lease: seconds.
        """
        if not await self._database.fetchrow(
            SQL["checkpoint"], claim.id, claim.lease, pages, receivers, lease, next_url
        ):
            raise LeaseLostError

    async def release(
        self, claim: Claim, *, unfinished: bool, delay: float, failures: int, reason: str | None
    ) -> None:
        """End a slice; the next one is due in `delay` seconds."""
        await self._database.execute(
            SQL["release"], claim.id, claim.lease, unfinished, delay, failures, reason
        )

    async def finish(
        self, claim: Claim, ended: str, reason: str | None, *, unpublished_from: int | None
    ) -> dict[str, int]:
        """End a posting, and return its messages by status.

        Messages from page `unpublished_from` on that are not settled get the status `ended`.
        """
        async with self._database.transaction() as connection:
            await _lock(connection, claim)
            unpublished = 0
            if unpublished_from is not None:
                unpublished = await connection.fetchval(
                    SQL["end_unpublished"], claim.id, unpublished_from, ended, "not published"
                )
            row = await connection.fetchrow(SQL["finish"], claim.id, ended, reason, unpublished)
        return _messages(row)

    async def settle(
        self, changes: Sequence[MessageChange]
    ) -> tuple[list[tuple[str, MessageState]], list[DonePosting]]:
        """Apply changes; return the channel and status of changed messages, and the done postings.

        Changes of unknown messages and stale changes are ignored.
        """
        async with self._database.transaction() as connection:
            postings = sorted({change.posting_id for change in changes})
            await connection.fetch(SQL["lock_postings"], postings)
            rows = await connection.fetch(
                SQL["lock_messages"],
                [change.posting_id for change in changes],
                [change.id for change in changes],
            )
            stored = {(row["posting_id"], row["id"]): row for row in rows}
            applied: dict[tuple[UUID, UUID], MessageChange] = {}
            for change in changes:
                key = (change.posting_id, change.id)
                if key in stored:
                    status = applied[key].status if key in applied else stored[key]["status"]
                    if domain.may_change(MessageState(status), change.status):
                        applied[key] = change
            if not applied:
                return [], []
            pairs = [(stored[key], change) for key, change in applied.items()]
            await connection.execute(SQL["settle"], *map(list, zip(*applied.values(), strict=True)))
            recounted = await connection.fetch(SQL["recount"], *_differences(pairs))
        return (
            [(row["channel"], change.status) for row, change in pairs],
            [
                DonePosting(row["id"], row["from_event"], _messages(row))
                for row in recounted
                if row["last_settled"] and row["ended"] == "expanded"
            ],
        )

    async def ended_before(self, age: timedelta, limit: int) -> list[UUID]:
        """Return postings that ended longer ago than `age`, the oldest first."""
        rows = await self._database.fetch(SQL["ended_before"], age.total_seconds(), limit)
        return [row["id"] for row in rows]

    async def delete_messages(self, posting_id: UUID, limit: int) -> bool:
        """Delete up to `limit` messages of a posting; return whether there were any.

        Messages that another process is deleting are skipped.
        """
        return await self._database.execute(SQL["delete_messages"], posting_id, limit) != "DELETE 0"

    async def delete_posting(self, posting_id: UUID) -> None:
        """Delete a posting, unless it still has messages."""
        await self._database.execute(SQL["delete_posting"], posting_id)


def _posting(body: str) -> Posting:
    """Return a stored posting. A newer version may have stored it, with fields of its own."""
    return Posting.model_validate_json(body, extra="ignore")


async def _lock(connection: Any, claim: Claim) -> None:
    if not await connection.fetchrow(SQL["lock"], claim.id, claim.lease):
        raise LeaseLostError


def _progress(row: Any) -> dict[str, Any]:
    posting = _posting(row["body"])
    return {
        "id": row["id"],
        "status": _state(row),
        "reason": row["reason"],
        "from_event": posting.from_event,
        "template": posting.template,
        "delivery_type": list(posting.delivery_type),
        "accepted_at": row["accepted_at"],
        "expires_at": row["expires_at"],
        "pages": row["pages"],
        "receivers": row["receivers"],
        "messages": {MessageState(state): count for state, count in _messages(row).items()},
    }


def _state(row: Any) -> PostingState:
    started = bool(row["pages"] or row["created"] or row["skipped"])
    return domain.posting_state(row["ended"], started=started, unsettled=row["created"])


def _messages(row: Any) -> dict[str, int]:
    return {state.value: row[state.value] for state in MessageState}


_COUNTED: Final = (
    MessageState.CREATED,
    MessageState.SENT,
    MessageState.FAILED,
    MessageState.EXPIRED,
)


def _differences(changes: Sequence[tuple[Any, MessageChange]]) -> list[list[Any]]:
    """Return the changes to the counters of each posting, as columns ordered by posting id."""
    counts: dict[UUID, dict[str, int]] = {}
    for row, change in changes:
        of_posting = counts.setdefault(change.posting_id, dict.fromkeys(_COUNTED, 0))
        of_posting[row["status"]] -= 1
        of_posting[change.status] += 1
    ids = sorted(counts)
    return [ids, *([counts[id_][state] for id_ in ids] for state in _COUNTED)]
