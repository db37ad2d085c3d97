"""Postings and their messages in PostgreSQL. Every method is one statement or one transaction.

All raise StoreConnectionLostError when the database is unavailable, slow or full. Whether they took
effect is then unknown.

What a turn writes is bound to the number of its lease, and raises LeaseLostError once another
turn has begun.
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

SQL: Final = queries("services.mailings")
# Different reasons for skipping that a status tells: the most frequent ones.
MOST_REASONS: Final = 100


class LeaseLostError(Exception):
    """Another turn of this posting has begun: this one may change nothing more."""


@dataclass(frozen=True, slots=True)
class Order:
    """A posting to take in."""

    id: UUID
    posting: Posting
    fingerprint: bytes
    expires_at: datetime | None
    client_id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A turn of a posting. `interrupted`: the turn before left a page half given out."""

    id: UUID
    lease: int
    interrupted: bool
    posting: Posting
    traceparent: str | None
    expires_at: datetime | None
    context: dict[str, Any] | None
    pages: int
    receivers: int
    tries: int


class Row(NamedTuple):
    """A message to be: given out unless there is a reason `why` not."""

    id: UUID
    user_id: str
    channel: str
    why: str | None


class Settled(NamedTuple):
    """What a fact says of a message."""

    posting_id: UUID
    id: UUID
    status: MessageState
    why: str | None


class Finished(NamedTuple):
    """A posting whose last message is settled, and its messages by state."""

    id: UUID
    from_event: str | None
    messages: dict[str, int]


class Store:
    """The schema `mailings`, that several processes may use at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accept(self, orders: Sequence[Order]) -> set[UUID]:
        """Take in postings of different ids; those that were not known."""
        rows = await self._database.fetch(
            SQL["accept"],
            [order.id for order in orders],
            [order.client_id for order in orders],
            [order.fingerprint for order in orders],
            [order.posting.model_dump_json(exclude_none=True) for order in orders],
            [order.posting.from_event for order in orders],
            [order.traceparent for order in orders],
            [order.expires_at for order in orders],
        )
        return {row["id"] for row in rows}

    async def known(
        self, posting_id: UUID, client_id: str | None
    ) -> tuple[bytes, PostingState] | None:
        """The fingerprint and state of a posting; None where the client has none of that id."""
        row = await self._database.fetchrow(SQL["posting"], posting_id, client_id)
        return None if row is None else (row["fingerprint"], _state(row))

    async def status(self, posting_id: UUID, client_id: str | None) -> PostingStatus | None:
        """How far a posting is; None where the client has none of that id."""
        row = await self._database.fetchrow(SQL["posting"], posting_id, client_id)
        if row is None:
            return None
        skipped = (
            await self._database.fetch(SQL["skipped"], posting_id, MOST_REASONS)
            if row["skipped"]
            else ()
        )
        return PostingStatus(
            **_progress(row), skipped={each["why"]: each["times"] for each in skipped}
        )

    async def postings(
        self,
        client_id: str | None,
        from_event: str | None,
        before: tuple[datetime, UUID],
        limit: int,
    ) -> list[PostingProgress]:
        """Postings that a client sees, newest first, of those accepted before that one."""
        rows = await self._database.fetch(SQL["postings"], client_id, from_event, *before, limit)
        return [PostingProgress(**_progress(row)) for row in rows]

    async def messages(
        self, posting_id: UUID, after: UUID, status: MessageState | None, limit: int
    ) -> list[PostingMessage]:
        """Messages of a posting in the order of their ids."""
        rows = await self._database.fetch(SQL["messages"], posting_id, after, status, limit)
        return [PostingMessage(**dict(row.items())) for row in rows]

    async def claim(self, limit: int, *, lease: float) -> list[Claim]:
        """Begin turns of the postings whose turn is next, each for `lease` seconds unless kept."""
        return [
            Claim(
                row["id"],
                row["lease"],
                row["held"],
                Posting.model_validate_json(row["body"]),
                row["traceparent"],
                row["expires_at"],
                None if row["context"] is None else from_json(row["context"]),
                row["pages"],
                row["receivers"],
                row["tries"],
            )
            for row in await self._database.fetch(SQL["claim"], limit, lease)
        ]

    async def keep(self, claim: Claim, *, lease: float) -> bool:
        """Have a turn for `lease` seconds more; False where it is lost."""
        row = await self._database.fetchrow(SQL["keep"], claim.id, claim.lease, lease)
        return row is not None

    async def remember(self, claim: Claim, context: Mapping[str, Any]) -> None:
        """Keep what was fetched for a posting."""
        text = to_json(context).decode()
        await self._database.execute(SQL["fetched"], claim.id, claim.lease, text)

    async def put(
        self, claim: Claim, page: int, rows: Sequence[Row], *, take_back: bool
    ) -> set[UUID]:
        """Write messages of a page; the ids of those that were not there yet.

        With `take_back`, what an interrupted turn wrote of this page and later ones is forgotten
        first, except for what has been settled meanwhile.
        """
        async with self._database.transaction() as connection:
            await _lock(connection, claim)
            created = skipped = 0
            if take_back:
                gone = await connection.fetchrow(SQL["take_back"], claim.id, page)
                created, skipped = -gone["created"], -gone["skipped"]
            columns = list(map(list, zip(*rows, strict=True))) or [[], [], [], []]
            fresh = {
                row["id"] for row in await connection.fetch(SQL["put"], claim.id, page, *columns)
            }
            new = sum(1 for row in rows if row.why is None and row.id in fresh)
            await connection.execute(
                SQL["count"], claim.id, created + new, skipped + len(fresh) - new
            )
        return fresh

    async def known_before(self, claim: Claim, page: int, ids: Collection[UUID]) -> int:
        """How many of these messages were written with pages before this one."""
        row = await self._database.fetchrow(SQL["known_before"], claim.id, ids, page)
        return int(row["count"])

    async def checkpoint(self, claim: Claim, *, pages: int, receivers: int, lease: float) -> None:
        """All messages of so many pages are given out; the last of them had so many receivers."""
        if not await self._database.fetchrow(
            SQL["checkpoint"], claim.id, claim.lease, pages, receivers, lease
        ):
            raise LeaseLostError

    async def put_off(
        self, claim: Claim, *, held: bool, delay: float, tries: int, reason: str | None
    ) -> None:
        """End a turn; the next comes in `delay` seconds at the earliest."""
        await self._database.execute(
            SQL["put_off"], claim.id, claim.lease, held, delay, tries, reason
        )

    async def finish(
        self, claim: Claim, ended: str, reason: str | None, *, unfinished: int | None
    ) -> dict[str, int]:
        """End a posting; its messages by state. Those from page `unfinished` on end as it does."""
        async with self._database.transaction() as connection:
            await _lock(connection, claim)
            swept = 0
            if unfinished is not None:
                swept = await connection.fetchval(
                    SQL["sweep"], claim.id, unfinished, ended, "not given out any more"
                )
            row = await connection.fetchrow(SQL["finish"], claim.id, ended, reason, swept)
        return _messages(row)

    async def settle(
        self, facts: Sequence[Settled]
    ) -> tuple[list[tuple[str, MessageState]], list[Finished]]:
        """Give messages the states that facts tell; what changed, and the postings that are done.

        A fact about a message that is not there, or that changes nothing, is passed over.
        """
        async with self._database.transaction() as connection:
            postings = sorted({fact.posting_id for fact in facts})
            await connection.fetch(SQL["lock_postings"], postings)
            rows = await connection.fetch(
                SQL["lock_messages"],
                [fact.posting_id for fact in facts],
                [fact.id for fact in facts],
            )
            before = {(row["posting_id"], row["id"]): row for row in rows}
            after: dict[tuple[UUID, UUID], Settled] = {}
            for fact in facts:
                key = (fact.posting_id, fact.id)
                if key in before:
                    known = after[key].status if key in after else before[key]["status"]
                    if domain.settled(MessageState(known), fact.status):
                        after[key] = fact
            if not after:
                return [], []
            changes = [(before[key], fact) for key, fact in after.items()]
            await connection.execute(SQL["settle"], *map(list, zip(*after.values(), strict=True)))
            recounted = await connection.fetch(SQL["recount"], *_counts(changes))
        return (
            [(row["channel"], fact.status) for row, fact in changes],
            [
                Finished(row["id"], row["from_event"], _messages(row))
                for row in recounted
                if row["last_settled"] and row["ended"] == "expanded"
            ],
        )

    async def old(self, age: timedelta, limit: int) -> list[UUID]:
        """Postings that ended longer ago, the oldest first."""
        rows = await self._database.fetch(SQL["old_postings"], age.total_seconds(), limit)
        return [row["id"] for row in rows]

    async def forget(self, posting_id: UUID, limit: int) -> bool:
        """Delete so many of a posting's messages, and with the last the posting; if it is gone."""
        status = await self._database.execute(SQL["old_messages"], posting_id, limit)
        if status != "DELETE 0":
            return False
        return await self._database.execute(SQL["forget"], posting_id) == "DELETE 1"


async def _lock(connection: Any, claim: Claim) -> None:
    if not await connection.fetchrow(SQL["lock"], claim.id, claim.lease):
        raise LeaseLostError


def _progress(row: Any) -> dict[str, Any]:
    posting = Posting.model_validate_json(row["body"])
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
    begun = bool(row["pages"] or row["created"] or row["skipped"])
    return domain.state(row["ended"], begun=begun, open_messages=row["created"])


def _messages(row: Any) -> dict[str, int]:
    return {state.value: row[state.value] for state in MessageState}


_COUNTED: Final = (
    MessageState.CREATED,
    MessageState.SENT,
    MessageState.FAILED,
    MessageState.EXPIRED,
)


def _counts(changes: Sequence[tuple[Any, Settled]]) -> list[list[Any]]:
    """What changes in the counters of each posting, as columns, in the order of their ids."""
    counts: dict[UUID, dict[str, int]] = {}
    for row, fact in changes:
        of = counts.setdefault(fact.posting_id, dict.fromkeys(_COUNTED, 0))
        of[row["status"]] -= 1
        of[fact.status] += 1
    ids = sorted(counts)
    return [ids, *([counts[each][state] for each in ids] for state in _COUNTED)]
