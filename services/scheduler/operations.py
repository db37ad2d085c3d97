"""What can be asked about a client's own events: status, lists, cancel, reschedule, retry.

Another client's event is never found. Nothing here knows how it was asked.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from json import loads
from typing import Any, Final
from uuid import UUID

from services.scheduler import domain
from services.scheduler.clock import DatabaseClock
from services.scheduler.domain import Happened, ScheduledCallback
from services.scheduler.facts import FactPublisher
from services.scheduler.intake import moment_faults
from services.scheduler.store import BEGINNING, Store
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

# Events of a group cancelled in one transaction, and named in the answer.
GROUP_BATCH: Final = 1000
# Events looked through for a page of those with one status, and in how many steps; after that the
# page may be short, and its cursor leads on.
WINDOW: Final = 2000
WINDOWS: Final = 10
END: Final = datetime(9999, 12, 31, tzinfo=UTC)
_LAST: Final = UUID(int=(1 << 128) - 1)
_FIRST: Final = UUID(int=0)

_CANCELLED: Final = {
    Status.NOTIFIED: CancelResult.ALREADY_NOTIFIED,
    Status.FAILED: CancelResult.ALREADY_FAILED,
    Status.CANCELLED: CancelResult.CANCELLED,
}
_RESCHEDULED: Final = {
    Status.NOTIFIED: RescheduleResult.ALREADY_NOTIFIED,
    Status.FAILED: RescheduleResult.ALREADY_FAILED,
    Status.CANCELLED: RescheduleResult.ALREADY_CANCELLED,
}
NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="there is no such callback")


class Operations:
    """Each takes the client id first; '' is the anonymous client.

    All raise StoreConnectionLostError.

    `wake` hears when something falls due.
    """

    def __init__(
        self,
        store: Store,
        announcer: FactPublisher,
        clock: DatabaseClock,
        wake: Callable[[datetime], None],
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._clock = clock
        self._wake = wake

    async def get(self, client_id: str, asked: GetCallback) -> CallbackStatus | Failure:
        """An event's status."""
        found = await self._store.find(client_id, asked.id, asked.group_key, asked.event_key)
        rows = await self._store.statuses([found]) if found else {}
        return _status(rows[found]) if found in rows else NOT_FOUND

    async def page(self, client_id: str, asked: ListCallbacks) -> CallbackPage | Failure:
        """A page of events, newest first; with the status `failed`, those that failed last."""
        position = (END, _LAST)
        if asked.cursor is not None:
            try:
                position = _position(asked.cursor)
            except ValueError:
                return invalid([FieldError(field="cursor", message="is none that we gave")])
        if asked.event_key is not None:
            one = GetCallback(group_key=asked.group_key, event_key=asked.event_key)
            found = await self.get(client_id, one)
            wanted = isinstance(found, CallbackStatus) and asked.status in (None, found.status)
            items = [found] if wanted and isinstance(found, CallbackStatus) else []
            return CallbackPage(items=items, next_cursor=None)
        items, more = await self._page(client_id, asked, position)
        return CallbackPage(items=items, next_cursor=None if more is None else _cursor(more))

    async def _page(
        self, client_id: str, asked: ListCallbacks, start: tuple[datetime, UUID]
    ) -> tuple[list[CallbackStatus], tuple[datetime, UUID] | None]:
        failed = asked.status is Status.FAILED
        sifts = asked.status is not None and (not failed or asked.group_key is not None)
        window = max(WINDOW, asked.limit) if sifts else asked.limit
        items: list[CallbackStatus] = []
        position = start
        for _ in range(WINDOWS):
            positions = await self._store.page(
                client_id,
                position,
                window + 1,  # one more says whether there are more
                group_key=asked.group_key,
                failed=failed,
            )
            rows = await self._store.statuses([event_id for _, event_id in positions[:window]])
            for place in positions[:window]:
                row = rows.get(place[1])
                if row is None or not _wanted(row, asked):
                    continue
                items.append(_status(row))
                if len(items) == asked.limit:
                    return items, place if place != positions[-1] else None
            if len(positions) <= window:
                return items, None
            position = positions[window - 1]
        return items, position

    async def cancel(
        self, client_id: str, asked: CancelCallback
    ) -> CancelResponse | CancelGroupResponse:
        """Cancel an event or a whole group."""
        if asked.whole_group:
            assert asked.group_key is not None  # noqa: S101 - that is what a whole group means
            return await self._cancel_group(client_id, asked.group_key)
        found = await self._store.find(client_id, asked.id, asked.group_key, asked.event_key)
        if found is None:
            return CancelResponse(id=None, result=CancelResult.NOT_FOUND)
        results = await self._cancel([found])
        return CancelResponse(id=found, result=results[found])

    async def _cancel_group(self, client_id: str, group_key: str) -> CancelGroupResponse:
        items: list[CancelResponse] = []
        counts: dict[CancelResult, int] = {}
        position = (BEGINNING, _FIRST)
        while True:
            group = await self._store.group(client_id, group_key, position, GROUP_BATCH)
            if not group:
                return CancelGroupResponse(items=items, counts=counts)
            position = group[-1]
            for event_id, result in (await self._cancel([each for _, each in group])).items():
                counts[result] = counts.get(result, 0) + 1
                if len(items) < GROUP_BATCH:
                    items.append(CancelResponse(id=event_id, result=result))

    async def _cancel(self, ids: Sequence[UUID]) -> dict[UUID, CancelResult]:
        results: dict[UUID, CancelResult] = {}
        happened: list[Happened] = []

        def decide(live: Mapping[UUID, ScheduledCallback], _: datetime) -> list[ScheduledCallback]:
            results.clear()
            happened.clear()
            after = []
            for event in live.values():
                state, told = domain.cancel(event)
                after.append(state)
                ended = state.ended
                results[event.id] = CancelResult.CANCELLED if ended else CancelResult.IN_FLIGHT
                if told is not None:
                    happened.append(told)
            return after

        now = await self._store.change(ids, decide)
        await self._announcer.tell(happened, now)
        rest = [event_id for event_id in ids if event_id not in results]
        ends = await self._store.past(rest) if rest else {}
        for event_id in rest:
            # Between the two looks it may have begun again; then it is on its way.
            end = ends.get(event_id)
            results[event_id] = CancelResult.IN_FLIGHT if end is None else _result(end, _CANCELLED)
        return {event_id: results[event_id] for event_id in ids}

    async def reschedule(
        self, client_id: str, asked: RescheduleCallback
    ) -> RescheduleResponse | Failure:
        """Move an event to another moment, with all its tries before it again."""
        await self._clock.known()
        if faults := moment_faults(asked.run_at, self._clock.now()):
            return invalid(faults)
        found = await self._store.find(client_id, asked.id, asked.group_key, asked.event_key)
        if found is None:
            return RescheduleResponse(id=None, result=RescheduleResult.NOT_FOUND, run_at=None)
        answer: list[RescheduleResponse] = []

        def decide(
            live: Mapping[UUID, ScheduledCallback], now: datetime
        ) -> list[ScheduledCallback]:
            answer.clear()
            event = live.get(found)
            if event is None:
                return []
            if event.in_flight:
                result = RescheduleResult.IN_FLIGHT
                answer.append(RescheduleResponse(id=found, result=result, run_at=event.run_at))
                return []
            run_at = asked.run_at or now + timedelta(seconds=asked.delay or 0.0)
            moved = domain.move(event, run_at, now)
            result = RescheduleResult.RESCHEDULED
            answer.append(RescheduleResponse(id=found, result=result, run_at=moved.run_at))
            self._wake(moved.next_at)
            return [moved]

        await self._store.change([found], decide)
        if answer:
            return answer[0]
        end = (await self._store.past([found])).get(found)
        if end is None:  # it began again between the two looks
            return RescheduleResponse(id=found, result=RescheduleResult.IN_FLIGHT, run_at=None)
        return RescheduleResponse(
            id=found, result=_result(end, _RESCHEDULED), run_at=end.event.run_at
        )

    async def retry(self, client_id: str, asked: RetryCallbacks) -> RetryResponse:
        """Start failed events again, due now; those that failed first before the others."""
        ids = await self._store.failed(
            client_id,
            id_=asked.id,
            group_key=asked.group_key,
            after=asked.failed_after,
            before=asked.failed_before,
            limit=asked.limit,
        )
        if ids and not asked.dry_run:
            ids = await self._store.restart(ids)
            await self._clock.known()
            self._wake(self._clock.now())
        return RetryResponse(count=len(ids), ids=ids)


def _result(end: Any, results: Mapping[Status, Any]) -> Any:
    return results[end.event.status]


def _wanted(row: Any, asked: ListCallbacks) -> bool:
    return (asked.status is None or row["status"] == asked.status) and (
        asked.group_key is None or row["group_key"] == asked.group_key
    )


def _status(row: Any) -> CallbackStatus:
    recurs = domain.rules(row["rules"]).rhythm is not None
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


def _cursor(position: tuple[datetime, UUID]) -> str:
    at, event_id = position
    return base64.urlsafe_b64encode(f"{at.isoformat()}/{event_id}".encode()).decode()


def _position(cursor: str) -> tuple[datetime, UUID]:
    """Where a page begins.

    Raises:
        ValueError: no cursor of ours.
    """
    try:
        at, _, event_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition("/")
    except (binascii.Error, UnicodeError) as error:
        raise ValueError(str(error)) from None
    moment = datetime.fromisoformat(at)
    if moment.tzinfo is not UTC:
        raise ValueError("not in UTC")
    return moment, UUID(event_id)
