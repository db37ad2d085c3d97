"""Postings and their messages in PostgreSQL. Every method is one statement or one transaction.

The writes of slices that run at the same time share a transaction, so a posting to one recipient
costs a fraction of a round trip.

All raise StoreConnectionLostError when the database is unavailable, slow or full. The effect is
then unknown. Writes of a slice check its lease, and raise LeaseLostError when another slice has
claimed the posting.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic_core import to_json

from services.mailings import domain
from services.mailings.records import (
    Claim,
    Cohort,
    DonePosting,
    LeaseLostError,
    MessageChange,
    MessageRow,
    NewPosting,
    ReturnedMessage,
)
from services.mailings.rows import differences, message_counts, to_claim, to_progress, to_state
from shared.contracts.message_facts import ReasonCode
from shared.contracts.posting_requests import (
    MessageState,
    PostingMessage,
    PostingProgress,
    PostingState,
    PostingStatus,
)
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.resilience.batching import Batcher

SQL: Final = queries("services.mailings")
# Slices whose writes share a transaction. Each has up to 500 messages, and most have one.
BATCH_SIZE: Final = 200
# Reasons for skipping in a status: the most frequent ones.
MAX_REASONS: Final = 100


class _Addition(NamedTuple):
    """Messages of a page to add."""

    claim: Claim
    page: int
    rows: Sequence[MessageRow]
    remove_unfinished: bool


class _Checkpoint(NamedTuple):
    """A checkpoint to set."""

    claim: Claim
    pages: int
    receivers: int
    next_page: str | None
    lease: float


class Store:
    """The schema `mailings`, which several processes may use at the same time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._additions: Batcher[_Addition, dict[UUID, MessageState] | None] = Batcher(
            self._add_messages, max_size=BATCH_SIZE
        )
        self._checkpoints: Batcher[_Checkpoint, dict[str, int] | None] = Batcher(
            self._set_checkpoints, max_size=BATCH_SIZE
        )

    async def run(self) -> None:
        """Write for slices until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._additions.run())
            group.create_task(self._checkpoints.run())

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
        return None if row is None else (row["fingerprint"], to_state(row))

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
            **to_progress(row), skipped={row["reason"]: row["count"] for row in skipped}
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
        return [PostingProgress(**to_progress(row)) for row in rows]

    async def messages(
        self, posting_id: UUID, after: UUID, status: MessageState | None, limit: int
    ) -> list[PostingMessage]:
        """Return messages of a posting, ordered by id."""
        rows = await self._database.fetch(SQL["messages"], posting_id, after, status, limit)
        return [PostingMessage(**dict(row.items())) for row in rows]

    async def claim(
        self, small: int, lists: int, *, lease: float, only_urgent: bool = False
    ) -> list[Claim]:
        """Claim due postings for `lease` seconds, urgent ones first: small ones, and lists."""
        found = await self._database.fetch(SQL["claim"], small, lists, lease, only_urgent)
        return [to_claim(row) for row in found]

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> set[UUID]:
        """Extend claims by `lease` seconds, and return the ids of those that are not lost."""
        async with self._database.transaction() as connection:
            locked = await _lock(connection, claims)
            await connection.execute(SQL["renew"], locked.keys(), lease)
        return set(locked)

    async def save_fetched_data(self, claim: Claim, data: Mapping[str, Any]) -> None:
        """Store the data that the template of a posting fetches."""
        text = to_json(data).decode()
        await self._database.execute(SQL["save_fetched_data"], claim.id, claim.lease, text)

    async def add_messages(
        self, claim: Claim, page: int, rows: Sequence[MessageRow], *, remove_unfinished: bool
    ) -> dict[UUID, MessageState]:
        """Add messages of a page, and return the states of those that are new.

        With `remove_unfinished`, it first removes the messages that an interrupted slice added
        for this page and later ones, unless they have been settled.
        """
        new = await self._additions.add(_Addition(claim, page, rows, remove_unfinished))
        if new is None:
            raise LeaseLostError
        return new

    async def _add_messages(
        self, additions: list[_Addition]
    ) -> list[dict[UUID, MessageState] | None]:
        async with self._database.transaction() as connection:
            locked = await _lock(connection, [addition.claim for addition in additions])
            rows = []
            for claim, page, messages, remove_unfinished in additions:
                if locked.get(claim.id) != claim.lease:
                    continue
                if remove_unfinished:
                    await connection.execute(SQL["remove_unfinished"], claim.id, page)
                rows += [(claim.id, page, *message) for message in messages]
            new: dict[UUID, dict[UUID, MessageState]] = {id_: {} for id_ in locked}
            if rows:
                columns = map(list, zip(*rows, strict=True))
                for row in await connection.fetch(SQL["add_messages"], *columns):
                    new[row["posting_id"]][row["id"]] = MessageState(row["status"])
        return [
            new[claim.id] if locked.get(claim.id) == claim.lease else None
            for claim, *_ in additions
        ]

    async def pace(self, mailing_id: UUID, number: int) -> tuple[bool, float]:
        """Return whether the rate of a mailing permits messages now, and seconds until more."""
        row = await self._database.fetchrow(SQL["pace"], mailing_id, number)
        return row["permitted"], row["seconds"]

    async def returned_messages(self, claim: Claim, limit: int) -> list[ReturnedMessage]:
        """Return messages that delivery has returned, ordered by id."""
        rows = await self._database.fetch(SQL["returned"], claim.id, limit)
        return [ReturnedMessage(**row) for row in rows]

    async def published_again(self, claim: Claim, messages: Sequence[ReturnedMessage]) -> None:
        """Record that returned messages are published again."""
        async with self._database.transaction() as connection:
            if not await _lock(connection, [claim]):
                raise LeaseLostError
            ids, times = [each.id for each in messages], [each.at for each in messages]
            await connection.execute(SQL["published_again"], claim.id, ids, times)

    async def set_subscribed(self, subscription: bytes, *, subscribed: bool) -> None:
        """End a subscription to a kind of e-mail, or restore it."""
        await self._database.execute(
            SQL["subscribe" if subscribed else "unsubscribe"], subscription
        )

    async def known_before(self, claim: Claim, page: int, ids: Collection[UUID]) -> tuple[int, int]:
        """Return how many of these messages were added for earlier pages, and the last of these."""
        row = await self._database.fetchrow(SQL["known_before"], claim.id, ids, page)
        return row["count"], row["page"] or 0

    async def checkpoint(
        self, claim: Claim, *, pages: int, receivers: int, next_page: str | None, lease: float
    ) -> dict[str, int]:
        """Record that all messages of the first `pages` pages are published.

        After the last page, the posting ends.

        Args:
            claim: the claim, which is extended by `lease` seconds.
            pages: the number of pages.
            receivers: the number of users on the last of them.
            next_page: the URL of the next page; None after the last one.
            lease: seconds.

        Returns:
            the messages of the posting, by status.
        """
        counts = await self._checkpoints.add(_Checkpoint(claim, pages, receivers, next_page, lease))
        if counts is None:
            raise LeaseLostError
        return counts

    async def _set_checkpoints(self, checkpoints: list[_Checkpoint]) -> list[dict[str, int] | None]:
        async with self._database.transaction() as connection:
            locked = await _lock(connection, [each.claim for each in checkpoints])
            rows = [
                (claim.id, *values)
                for claim, *values in checkpoints
                if locked.get(claim.id) == claim.lease
            ]
            counts = {}
            if rows:
                columns = map(list, zip(*rows, strict=True))
                for row in await connection.fetch(SQL["checkpoint"], *columns):
                    counts[row["id"]] = message_counts(row)
        return [
            counts[claim.id] if locked.get(claim.id) == claim.lease else None
            for claim, *_ in checkpoints
        ]

    async def release(  # noqa: PLR0913 - each is a column
        self,
        claim: Claim,
        *,
        unfinished: bool,
        is_list: bool,
        delay: float,
        failures: int,
        reason: str | None,
    ) -> None:
        """End a slice; the next one is due in `delay` seconds."""
        await self._database.execute(
            *(SQL["release"], claim.id, claim.lease, unfinished, is_list),
            *(delay, failures, reason),
        )

    async def finish(
        self, claim: Claim, ended: str, reason: str | None, *, unpublished_from: int | None
    ) -> dict[str, int]:
        """End a posting before its last page, and return its messages by status.

        Messages from page `unpublished_from` on that are not settled get the status `ended`. The
        mailing of a cohort that fails gets the reason, too.
        """
        async with self._database.transaction() as connection:
            if ended == MessageState.FAILED and isinstance(claim.content, Cohort):
                mailing_id = claim.content.mailing_id
                await connection.execute(SQL["fail_mailing"], mailing_id, reason)
            if not await _lock(connection, [claim]):
                raise LeaseLostError
            unpublished = 0
            if unpublished_from is not None:
                expired = ended == MessageState.EXPIRED
                unpublished = await connection.fetchval(
                    SQL["end_unpublished"],
                    *(claim.id, unpublished_from, ended),
                    ReasonCode.EXPIRED if expired else ReasonCode.NOT_PUBLISHED,
                    "not published",
                )
            row = await connection.fetchrow(SQL["finish"], claim.id, ended, reason, unpublished)
        return message_counts(row)

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
            recounted = await connection.fetch(SQL["recount"], *differences(pairs))
        return (
            [(row["channel"], change.status) for row, change in pairs],
            [
                DonePosting(row["id"], row["mailing_id"], row["from_event"], message_counts(row))
                for row in recounted
                if row["last_settled"] and row["ended"] == "expanded"
            ],
        )

    async def take_back(self, messages: Mapping[tuple[UUID, UUID], ReasonCode]) -> None:
        """Record messages, by posting and id, that delivery has returned, and why.

        They are published again. Settled messages stay as they are.
        """
        postings = sorted({posting_id for posting_id, _ in messages})
        columns = [list(column) for column in zip(*messages, strict=True)]
        async with self._database.transaction() as connection:
            await connection.fetch(SQL["lock_postings"], postings)
            await connection.fetch(SQL["lock_messages"], *columns)
            await connection.execute(SQL["take_back"], *columns, list(messages.values()))
            await connection.execute(SQL["reopen"], postings)

    async def end_times(self, mailings: Collection[str]) -> dict[str, datetime]:
        """Return the end times of those of these mailings that have not ended, by their ids."""
        rows = await self._database.fetch(SQL["end_times"], mailings)
        return {row["id"]: row["end_at"] for row in rows}

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


async def _lock(connection: Any, claims: Sequence[Claim]) -> dict[UUID, int]:
    """Lock the postings whose claims are not lost, and return their ids and leases."""
    rows = await connection.fetch(
        SQL["lock"], [claim.id for claim in claims], [claim.lease for claim in claims]
    )
    return {row["id"]: row["lease"] for row in rows}
