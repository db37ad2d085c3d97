"""Operations on a client's callbacks: status, list, cancel, reschedule and retry.

Clients are isolated from each other: a callback of another client is not found.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from json import loads
from typing import Any, Final
from uuid import UUID

from services.scheduler import domain
from services.scheduler.changes import ChangeWriter
from services.scheduler.clock import DatabaseClock
from services.scheduler.domain import ScheduledCallback, Transition
from services.scheduler.intake import run_at_errors
from services.scheduler.store import Store
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.contracts.schedule_requests import (
    CallbackPage,
    CallbackStatus,
    CancelGroupResponse,
    CancelResponse,
    CancelResult,
    GetCallback,
    ListCallbacks,
    RescheduleResponse,
    RescheduleResult,
    RetryCallbacks,
    RetryResponse,
)
from shared.contracts.schedules import CancelCallback, RescheduleCallback, Status
from shared.pagination import END, START, Position, decode_cursor, encode_cursor

# Callbacks of a group that are cancelled in one transaction, and the most that a response lists.
GROUP_BATCH_SIZE: Final = 1000
# Callbacks read at a time for a list by status, and how often. After that the page ends early, and
# its cursor continues after the last callback read.
FILTER_WINDOW: Final = 2000
MAX_FILTER_WINDOWS: Final = 10

_CANCEL_RESULTS: Final = {
    Status.NOTIFIED: CancelResult.ALREADY_NOTIFIED,
    Status.FAILED: CancelResult.ALREADY_FAILED,
    Status.CANCELLED: CancelResult.CANCELLED,
}
_RESCHEDULE_RESULTS: Final = {
    Status.NOTIFIED: RescheduleResult.ALREADY_NOTIFIED,
    Status.FAILED: RescheduleResult.ALREADY_FAILED,
    Status.CANCELLED: RescheduleResult.ALREADY_CANCELLED,
}
CALLBACK_NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="callback not found")


class Operations:
    """Executes operations. Their first argument is the client id; '' is the anonymous client.

    All operations raise StoreConnectionLostError.
    wake_at: called with the next time at which a callback needs attention.
    """

    def __init__(
        self,
        store: Store,
        changes: ChangeWriter,
        clock: DatabaseClock,
        wake_at: Callable[[datetime], None],
    ) -> None:
        self._store = store
        self._changes = changes
        self._clock = clock
        self._wake_at = wake_at

    async def get(self, client_id: str, request: GetCallback) -> CallbackStatus | Failure:
        """Return the status of a callback."""
        id_ = await self._store.find(client_id, request.id, request.group_key, request.event_key)
        rows = await self._store.statuses([id_]) if id_ else {}
        return _status(rows[id_]) if id_ in rows else CALLBACK_NOT_FOUND

    async def list_page(self, client_id: str, request: ListCallbacks) -> CallbackPage | Failure:
        """Return a page of callbacks, newest first; for the status `failed`, by time of failure."""
        position = END
        if request.cursor is not None:
            try:
                position = decode_cursor(request.cursor)
            except ValueError:
                return invalid([FieldError(field="cursor", message="is not a valid cursor")])
        if request.event_key is not None:
            by_keys = GetCallback(group_key=request.group_key, event_key=request.event_key)
            found = await self.get(client_id, by_keys)
            if isinstance(found, Failure) or request.status not in (None, found.status):
                return CallbackPage(items=[], next_cursor=None)
            return CallbackPage(items=[found], next_cursor=None)
        items, last = await self._page(client_id, request, position)
        return CallbackPage(items=items, next_cursor=None if last is None else encode_cursor(last))

    async def _page(
        self, client_id: str, request: ListCallbacks, position: Position
    ) -> tuple[list[CallbackStatus], Position | None]:
        """Return the callbacks after a position, and where the next page begins, if any."""
        failed = request.status is Status.FAILED
        filtered = request.status is not None and (not failed or request.group_key is not None)
        window = max(FILTER_WINDOW, request.limit) if filtered else request.limit
        items: list[CallbackStatus] = []
        for _ in range(MAX_FILTER_WINDOWS):
            positions = await self._store.page(
                client_id,
                position,
                window + 1,  # one more shows whether another page follows
                group_key=request.group_key,
                failed=failed,
            )
            rows = await self._store.statuses([id_ for _, id_ in positions[:window]])
            for found in positions[:window]:
                row = rows.get(found[1])
                if row is None or not _matches(row, request):
                    continue
                items.append(_status(row))
                if len(items) == request.limit:
                    return items, found if found != positions[-1] else None
            if len(positions) <= window:
                return items, None
            position = positions[window - 1]
        return items, position

    async def cancel(
        self, client_id: str, command: CancelCallback
    ) -> CancelResponse | CancelGroupResponse:
        """Cancel a callback or a whole group."""
        if command.whole_group:
            assert command.group_key is not None  # noqa: S101 - `whole_group` implies it
            return await self._cancel_group(client_id, command.group_key)
        id_ = await self._store.find(client_id, command.id, command.group_key, command.event_key)
        if id_ is None:
            return CancelResponse(id=None, result=CancelResult.NOT_FOUND)
        results = await self._cancel([id_])
        return CancelResponse(id=id_, result=results[id_])

    async def _cancel_group(self, client_id: str, group_key: str) -> CancelGroupResponse:
        items: list[CancelResponse] = []
        counts: dict[CancelResult, int] = {}
        position = START
        while True:
            members = await self._store.group_members(
                client_id, group_key, position, GROUP_BATCH_SIZE
            )
            if not members:
                return CancelGroupResponse(items=items, counts=counts)
            position = members[-1]
            for id_, result in (await self._cancel([id_ for _, id_ in members])).items():
                counts[result] = counts.get(result, 0) + 1
                if len(items) < GROUP_BATCH_SIZE:
                    items.append(CancelResponse(id=id_, result=result))

    async def _cancel(self, ids: Sequence[UUID]) -> dict[UUID, CancelResult]:
        def next_state(
            callback: ScheduledCallback, _: datetime
        ) -> tuple[ScheduledCallback, Sequence[Transition]]:
            after, transition = domain.cancel(callback)
            return after, () if transition is None else (transition,)

        written = await self._changes.write(ids, next_state)
        results = {
            id_: CancelResult.CANCELLED if callback.finished else CancelResult.IN_FLIGHT
            for id_, callback in written.found.items()
        }
        rest = [id_ for id_ in ids if id_ not in results]
        finished = await self._store.finished(rest) if rest else {}
        for id_ in rest:
            # A callback that is in neither table was restarted between the two statements.
            callback = finished.get(id_)
            results[id_] = (
                CancelResult.IN_FLIGHT if callback is None else _CANCEL_RESULTS[callback.status]
            )
        return {id_: results[id_] for id_ in ids}

    async def reschedule(
        self, client_id: str, command: RescheduleCallback
    ) -> RescheduleResponse | Failure:
        """Move a callback to another due time, and count its attempts from zero."""
        await self._clock.wait_synced()
        if errors := run_at_errors(command.run_at, self._clock.now()):
            return invalid(errors)
        id_ = await self._store.find(client_id, command.id, command.group_key, command.event_key)
        if id_ is None:
            return RescheduleResponse(id=None, result=RescheduleResult.NOT_FOUND, run_at=None)
        response: RescheduleResponse | None = None

        def decide(
            callbacks: Mapping[UUID, ScheduledCallback], now: datetime
        ) -> list[ScheduledCallback]:
            nonlocal response
            callback = callbacks.get(id_)
            if callback is None:
                response = None
                return []
            if callback.in_flight:
                response = RescheduleResponse(
                    id=id_, result=RescheduleResult.IN_FLIGHT, run_at=callback.run_at
                )
                return []
            run_at = command.run_at or now + timedelta(seconds=command.delay or 0.0)
            after = domain.reschedule(callback, run_at, now)
            response = RescheduleResponse(
                id=id_, result=RescheduleResult.RESCHEDULED, run_at=after.run_at
            )
            self._wake_at(after.next_at)
            return [after]

        await self._store.update([id_], decide)
        if response is not None:
            return response
        callback = (await self._store.finished([id_])).get(id_)
        if callback is None:  # restarted between the two statements
            return RescheduleResponse(id=id_, result=RescheduleResult.IN_FLIGHT, run_at=None)
        result = _RESCHEDULE_RESULTS[callback.status]
        return RescheduleResponse(id=id_, result=result, run_at=callback.run_at)

    async def retry(self, client_id: str, request: RetryCallbacks) -> RetryResponse:
        """Make failed callbacks due now, in the order in which they failed."""
        ids = await self._store.failed_ids(
            client_id,
            id_=request.id,
            group_key=request.group_key,
            after=request.failed_after,
            before=request.failed_before,
            limit=request.limit,
        )
        if ids and not request.dry_run:
            ids = await self._store.restart(ids)
            await self._clock.wait_synced()
            self._wake_at(self._clock.now())
        return RetryResponse(count=len(ids), ids=ids)


def _matches(row: Any, request: ListCallbacks) -> bool:
    return (request.status is None or row["status"] == request.status) and (
        request.group_key is None or row["group_key"] == request.group_key
    )


def _status(row: Any) -> CallbackStatus:
    recurs = domain.parse_rules(row["rules"]).recurrence is not None
    return CallbackStatus(
        id=row["id"],
        status=Status(row["status"]),
        run_at=row["run_at"],
        next_at=row["next_at"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        group_key=row["group_key"],
        event_key=row["event_key"],
        context=loads(row["context"]),
        occurrence=row["occurrence"] if recurs else None,
        created_at=row["created_at"],
        finished_at=row["finished_at"],
    )
