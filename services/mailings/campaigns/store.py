"""Mailings in PostgreSQL. Every method is one statement or one transaction.

All raise StoreConnectionLostError when the database is unavailable. The effect is then unknown.
The database's clock decides whether a mailing is due.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from pydantic_core import to_json

from services.mailings.campaigns import domain
from services.mailings.campaigns.cohorts import TimeZones, openings
from services.mailings.campaigns.domain import Action, Effect
from services.mailings.campaigns.records import NewRow, StoredMailing, hours_of
from shared.contracts.mailing_requests import MailingMessage
from shared.contracts.mailings import ClientFilter, MailingContent, MailingStatus
from shared.contracts.posting_requests import MessageState
from shared.pagination import Position
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.mailings", "campaigns.sql")
# Bytes of the texts, contexts and tags of a page of mailings, without the last one, which begins
# below it. So a page takes little memory, and its JSON fits into a response.
MAX_PAGE_BYTES: Final = 2 << 20
# Tests of one mailing at once, and seconds until one more: ten a minute. Each sends an urgent SMS.
MAX_TESTS: Final = 10
TEST_INTERVAL: Final = 6.0

Check = Callable[[StoredMailing], None]


class ActionRefusedError(Exception):
    """The status of the mailing does not allow the action."""

    def __init__(self, status: MailingStatus) -> None:
        super().__init__(status.value)
        self.status = status


class MailingOverError(Exception):
    """The end time of the mailing has passed."""


class StopUnconfirmedError(Exception):
    """Delivery has not confirmed the latest stop of the mailing, which only its row repeats."""

    def __init__(self, mailing: StoredMailing) -> None:
        super().__init__()
        self.mailing = mailing


class Campaigns:
    """The mailings, which several processes may change at the same time.

    Methods that may start a mailing take the time zones of its clients, and raise
    TimeZonesUnknownError without them: see `with_time_zones`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, new: NewRow, known: TimeZones | None = None, *, draft: bool
    ) -> StoredMailing | None:
        """Create a mailing, and start it unless it is a draft or its start time is later.

        A repeat changes nothing.

        Returns:
            the mailing; None if its id belongs to a different one.

        Raises:
            MailingOverError: its end time has passed.
        """
        async with self._database.transaction() as connection:
            created = await connection.fetchval(
                SQL["create"],
                *(new.id, new.client_id, new.fingerprint, new.traceparent),
                *_columns(new.content),
            )
            row = await connection.fetchrow(SQL["lock_own"], new.id, new.client_id)
            if row is None:
                return None
            if created is not None and row["end_at"] <= row["now"]:
                raise MailingOverError
            mailing = StoredMailing.of(row)
            if created is None:
                return mailing if mailing.fingerprint == new.fingerprint else None
            return mailing if draft else await _begin(connection, mailing, row["now"], known)

    async def find(self, owner: str, id_: UUID) -> StoredMailing | None:
        """Return a mailing; None if the owner has no such mailing."""
        row = await self._database.fetchrow(SQL["mailing"], id_, owner)
        return None if row is None else StoredMailing.of(row)

    async def permit_test(self, owner: str, id_: UUID) -> tuple[StoredMailing, float] | None:
        """Permit a test of a mailing; return it, and the seconds until a test is permitted.

        None if the owner has no such mailing.
        """
        row = await self._database.fetchrow(
            SQL["permit_test"], id_, owner, TEST_INTERVAL, MAX_TESTS * TEST_INTERVAL
        )
        return None if row is None else (StoredMailing.of(row), row["wait"])

    async def page(
        self, owner: str, status: MailingStatus | None, before: Position, limit: int
    ) -> tuple[list[StoredMailing], bool]:
        """Return mailings of an owner, newest first, created before this position.

        Also returns whether more follow. A page ends early after MAX_PAGE_BYTES.
        """
        rows = await self._database.fetch(
            SQL["mailings"], owner, status, *before, limit + 1, MAX_PAGE_BYTES
        )
        page = [StoredMailing.of(row) for row in rows[:limit]]
        return page, bool(rows) and rows[0]["found"] > len(page)

    async def act(
        self,
        owner: str,
        id_: UUID,
        action: Action,
        check: Check,
        known: TimeZones | None = None,
    ) -> StoredMailing | None:
        """Start, pause, resume, cancel or delete a mailing; return it, or None if there is none.

        Args:
            owner: the caller.
            id_: the mailing.
            action: any action but CHANGE.
            check: raises an error if the mailing is not as the caller expects.
            known: the time zones of its clients.

        Raises:
            ActionRefusedError, MailingOverError: the mailing does not allow the action.
            StopUnconfirmedError: it cannot be deleted yet.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock_own"], id_, owner)
            if row is None:
                return None
            mailing = StoredMailing.of(row)
            effect = domain.effect(action, mailing.status)
            if effect is not Effect.NOTHING:
                check(mailing)
            match effect:
                case Effect.NOTHING:
                    return mailing
                case Effect.BEGIN:
                    _check_end(mailing, row["now"])
                    return await _begin(connection, mailing, row["now"], known)
                case Effect.PAUSE:
                    return await _pause(connection, mailing)
                case Effect.CANCEL:
                    return await _end(connection, mailing, "cancel", MessageState.CANCELLED)
                case Effect.DELETE:
                    if not mailing.is_stop_confirmed:
                        raise StopUnconfirmedError(mailing)
                    # A settlement that holds a posting adds counts when it commits.
                    await connection.fetch(SQL["lock_all_postings"], id_)
                    await connection.execute(SQL["delete_statistics"], id_)
                    await connection.execute(SQL["delete"], id_)
                    return mailing
                case _:
                    raise ActionRefusedError(mailing.status)

    async def change(
        self,
        owner: str,
        id_: UUID,
        change: Callable[[StoredMailing, Effect], MailingContent],
        known: TimeZones | None = None,
    ) -> StoredMailing | None:
        """Replace the content of a mailing, and return it; None if there is none.

        Raises:
            ActionRefusedError: the mailing has ended.
            MailingOverError: its new end time has passed.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock_own"], id_, owner)
            if row is None:
                return None
            mailing = StoredMailing.of(row)
            effect = domain.effect(Action.CHANGE, mailing.status)
            if effect is None:
                raise ActionRefusedError(mailing.status)
            content = change(mailing, effect)
            if content == mailing.content:
                return mailing
            changed = StoredMailing.of(
                await connection.fetchrow(SQL["change"], id_, *_columns(content))
            )
            _check_end(changed, row["now"])
            if changed.started_at is not None and content.end_at != mailing.content.end_at:
                await connection.fetch(SQL["lock_postings"], id_)
                await connection.execute(SQL["limit_postings"], id_, content.end_at)
            if changed.status is MailingStatus.SCHEDULED:
                return await _begin(connection, changed, row["now"], known)
            return changed

    async def start_if_due(self, id_: UUID, known: TimeZones | None = None) -> StoredMailing | None:
        """Start a scheduled mailing whose start time has come; return it if it was started."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock"], id_)
            if row is None or row["status"] != "scheduled":
                return None
            if not row["start_at"] <= row["now"] < row["end_at"]:
                return None
            return await _begin(connection, StoredMailing.of(row), row["now"], known)

    async def finish_if_over(self, id_: UUID) -> StoredMailing | None:
        """Finish a mailing after its end time or its last message; return it if it has ended."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock"], id_)
            if row is None:
                return None
            mailing = StoredMailing.of(row)
            match mailing.status:
                case MailingStatus.SCHEDULED | MailingStatus.PAUSED:
                    over = row["now"] >= mailing.content.end_at
                case MailingStatus.RUNNING:
                    over = row["now"] >= mailing.content.end_at or not await connection.fetchval(
                        SQL["unsettled_postings"], id_
                    )
                case _:
                    over = False
            if not over:
                return None
            return await _end(connection, mailing, "finish", MessageState.EXPIRED)

    async def pending(self, overdue: float, limit: int) -> list[UUID]:
        """Return mailings that need attention; those are overdue that start this much late."""
        rows = await self._database.fetch(SQL["pending"], overdue, limit)
        return [row["id"] for row in rows]

    async def get(self, id_: UUID) -> StoredMailing | None:
        """Return a mailing of any owner."""
        row = await self._database.fetchrow(SQL["any_mailing"], id_)
        return None if row is None else StoredMailing.of(row)

    async def start_requested(self, mailing: StoredMailing) -> None:
        """Record that the scheduler has confirmed the start time."""
        await self._database.execute(SQL["requested"], mailing.id, mailing.start_at)

    async def stop_confirmed(self, mailing: StoredMailing) -> None:
        """Record that delivery has confirmed a stop, or its end; a running mailing continues."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["confirmed"], mailing.id, mailing.stop_version)
            if row is not None and row["status"] == "running":
                await connection.fetch(SQL["lock_postings"], mailing.id)
                await connection.execute(SQL["release_postings"], mailing.id)

    async def count_not_reached(self, id_: UUID) -> None:
        """Count the clients whom the postings of a mailing that has ended did not reach, once."""
        for posting in await self._database.fetch(SQL["uncounted_postings"], id_):
            # A million clients take a second, so without a lock (measured on a busy machine).
            rows = await self._database.fetch(SQL["not_reached"], posting["id"])
            columns = [row["operator_code"] for row in rows], [row["count"] for row in rows]
            async with self._database.transaction() as connection:
                if await connection.fetchrow(SQL["lock"], id_):  # it may have been deleted
                    await connection.execute(SQL["count_not_reached"], posting["id"], *columns)

    async def closed(self, id_: UUID) -> None:
        """Record that no message of a mailing that has ended is unsettled."""
        await self._database.execute(SQL["closed"], id_)

    async def time_zones(self, mailing: StoredMailing) -> TimeZones:
        """Return the time zones of a mailing's clients. A million of them take half a second."""
        owner, filter_ = mailing.client_id, mailing.content.filter
        rows = await self._database.fetch(
            SQL["time_zones"], owner, filter_.operator_codes, filter_.tags
        )
        return TimeZones(owner, filter_, [row["timezone"] for row in rows])

    async def audience(self, owner: str, filter_: ClientFilter) -> int:
        """Return the number of clients that a filter matches."""
        row = await self._database.fetchrow(
            SQL["audience"], owner, filter_.operator_codes, filter_.tags
        )
        count: int = row["count"]
        return count

    async def message(self, mailing: UUID, id_: UUID) -> MailingMessage | None:
        """Return a message; None if there is no such message."""
        row = await self._database.fetchrow(SQL["message"], mailing, id_)
        return None if row is None else _message(mailing, row)

    async def messages(
        self, mailing: UUID, after: tuple[UUID, UUID], status: MessageState | None, limit: int
    ) -> list[tuple[UUID, MailingMessage]]:
        """Return messages after this posting and message, each with its posting."""
        rows = await self._database.fetch(SQL["messages"], mailing, *after, status, limit)
        return [(row["posting_id"], _message(mailing, row)) for row in rows]


async def _begin(
    connection: Any, mailing: StoredMailing, now: datetime, known: TimeZones | None
) -> StoredMailing:
    """Schedule a mailing, start it, or continue it after a pause."""
    if mailing.started_at is not None:
        # Its postings continue when delivery has confirmed the end of the stop.
        return StoredMailing.of(await connection.fetchrow(SQL["continue"], mailing.id))
    status = domain.begun(mailing.start_at, now)
    if status is mailing.status:
        return mailing
    if status is MailingStatus.SCHEDULED:
        return StoredMailing.of(await connection.fetchrow(SQL["schedule"], mailing.id))
    cohorts = openings(mailing, now, known)
    ids = [domain.cohort_id(mailing.id, zone) for zone in cohorts]
    await connection.execute(
        SQL["create_cohorts"], mailing.id, ids, list(cohorts), list(cohorts.values())
    )
    return StoredMailing.of(await connection.fetchrow(SQL["run"], mailing.id))


async def _pause(connection: Any, mailing: StoredMailing) -> StoredMailing:
    paused = StoredMailing.of(await connection.fetchrow(SQL["pause"], mailing.id))
    await connection.fetch(SQL["lock_postings"], mailing.id)
    await connection.execute(SQL["hold_postings"], mailing.id)
    return paused


async def _end(
    connection: Any, mailing: StoredMailing, query: str, ended: MessageState
) -> StoredMailing:
    """End a mailing. Its unsettled messages are settled afterwards."""
    row = await connection.fetchrow(SQL[query], mailing.id)
    await connection.fetch(SQL["lock_postings"], mailing.id)
    await connection.execute(SQL["end_postings"], mailing.id, ended.value)
    return StoredMailing.of(row)


def _check_end(mailing: StoredMailing, now: datetime) -> None:
    if mailing.content.end_at <= now:
        raise MailingOverError


def _columns(content: MailingContent) -> tuple[Any, ...]:
    hours = hours_of(content)
    return (
        content.channel,
        content.text,
        content.template,
        to_json(content.template_context).decode(),
        content.start_at,
        content.end_at,
        content.filter.operator_codes,
        content.filter.tags,
        hours and hours.opens,
        hours and hours.closes,
        content.rate_per_minute,
    )


def _message(mailing: UUID, row: Any) -> MailingMessage:
    status = MessageState(row["status"])
    return MailingMessage(
        id=row["id"],
        mailing_id=mailing,
        client_id=row["user_id"],
        created_at=row["created_at"],
        sent_at=row["settled_at"] if status is MessageState.SENT else None,
        status=status,
        reason=row["reason"],
    )
