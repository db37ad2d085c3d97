"""Operations on a client's callbacks: status, list, cancel, reschedule and retry.

Clients are isolated from each other: a callback of another client is not found.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from json import loads
from time import monotonic
from typing import Any, Final
from uuid import UUID

from services.scheduler import domain
from services.scheduler.backlog import MAX_COUNT
from services.scheduler.changes import ChangeWriter
from services.scheduler.clock import DatabaseClock
from services.scheduler.domain import ScheduledCallback, Transition
from services.scheduler.facts import FactPublisher
from services.scheduler.intake import run_at_errors
from services.scheduler.messages import Content
from services.scheduler.records import Listed, Member, NewCallback
from services.scheduler.recurrence import Recurrence
from services.scheduler.store import Store
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.contracts.schedule_changes import CancelCallback, RescheduleCallback
from shared.contracts.schedule_requests import (
    BacklogFigures,
    CallbackPage,
    CallbackStatus,
    CancelGroupResponse,
    CancelResponse,
    CancelResult,
    GetCallback,
    ListCallbacks,
    ReadBacklog,
    Repetition,
    RescheduleResponse,
    RescheduleResult,
    RetryCallbacks,
    RetryResponse,
    RunCallback,
    RunResponse,
    RunResult,
)
from shared.contracts.schedules import ScheduleCallback, Status
from shared.errors import InfrastructureError
from shared.pagination import END, START, Position, decode_cursor, encode_cursor

# Callbacks of a group that are cancelled in one transaction, and the most that a response lists.
GROUP_BATCH_SIZE: Final = 1000
# Seconds for which one request cancels callbacks of a group, or waits to begin: less than the
# gateway's timeout.
GROUP_TIME: Final = 3.0
# Bytes of the contexts in one page: half of the longest response. A page with larger contexts ends
# early, and its cursor continues after its last callback.
MAX_PAGE_BYTES: Final = 4 << 20
# Callbacks read at a time for a list by status, and how often. After that the page ends early, and
# its cursor continues after the last callback read.
FILTER_WINDOW: Final = 2000
MAX_FILTER_WINDOWS: Final = 10

_CANCEL_RESULTS: Final[Mapping[Status | None, CancelResult]] = {
    Status.NOTIFIED: CancelResult.ALREADY_NOTIFIED,
    Status.FAILED: CancelResult.ALREADY_FAILED,
    Status.CANCELLED: CancelResult.CANCELLED,
}
_RESCHEDULE_RESULTS: Final = {
    Status.NOTIFIED: RescheduleResult.ALREADY_NOTIFIED,
    Status.FAILED: RescheduleResult.ALREADY_FAILED,
    Status.CANCELLED: RescheduleResult.ALREADY_CANCELLED,
}
_RUN_RESULTS: Final = {
    Status.NOTIFIED: RunResult.ALREADY_NOTIFIED,
    Status.FAILED: RunResult.ALREADY_FAILED,
    Status.CANCELLED: RunResult.ALREADY_CANCELLED,
}
INVALID_CURSOR: Final = invalid([FieldError(field="cursor", message="is not a valid cursor")])
CALLBACK_NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="callback not found")


class Operations:
    """Executes operations. Their first argument is the client id; '' is the anonymous client.

    All operations raise StoreConnectionLostError.
    wake_at: called with the next time at which a callback needs attention.
    change: returns the content of a callback with the changes of a command.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        store: Store,
        changes: ChangeWriter,
        clock: DatabaseClock,
        wake_at: Callable[[datetime], None],
        change: Callable[[ScheduledCallback, Content, RescheduleCallback], Content | Failure],
        *,
        facts: FactPublisher,
    ) -> None:
        self._store = store
        self._changes = changes
        self._facts = facts
        self._clock = clock
        self._wake_at = wake_at
        self._change = change
        self._group_turn = asyncio.Lock()

    async def get(self, client_id: str, request: GetCallback) -> CallbackStatus | Failure:
        """Return the status of a callback."""
        id_ = await self._store.find(client_id, request.id, request.group_key, request.event_key)
        rows = await self._store.statuses([id_]) if id_ else {}
        return _status(rows[id_]) if id_ in rows else CALLBACK_NOT_FOUND

    async def backlog(self, _client_id: str, _: ReadBacklog) -> BacklogFigures:
        """Return how many callbacks of all clients wait."""
        found = await self._store.backlog(MAX_COUNT)
        return BacklogFigures(waiting=found.waiting, due=found.due, oldest_due=found.oldest)

    async def list_page(self, client_id: str, request: ListCallbacks) -> CallbackPage | Failure:
        """Return a page of callbacks, newest first; for the status `failed`, by time of failure."""
        position = END
        if request.cursor is not None:
            try:
                position = decode_cursor(request.cursor)
            except ValueError:
                return INVALID_CURSOR
        items, last = await self._page(client_id, request, position)
        return CallbackPage(items=items, next_cursor=None if last is None else encode_cursor(last))

    async def _page(
        self, client_id: str, request: ListCallbacks, position: Position
    ) -> tuple[list[CallbackStatus], Position | None]:
        """Return the callbacks after a position, and where the next page begins, if any."""
        by_failure = request.status is Status.FAILED and request.event_key is None
        filtered = request.status is not None and not (by_failure and request.group_key is None)
        window = max(FILTER_WINDOW, request.limit) if filtered else request.limit
        chosen: list[Listed] = []
        room = MAX_PAGE_BYTES
        for _ in range(MAX_FILTER_WINDOWS):
            # One more than the window shows whether another page follows.
            found = (
                await self._store.failed_page(client_id, position, window + 1)
                if by_failure
                else await self._store.page(
                    client_id,
                    position,
                    window + 1,
                    group_key=request.group_key,
                    event_key=request.event_key,
                )
            )
            matching = found[:window]
            if filtered:
                states = await self._store.states([each.id for each in matching])
                matching = [each for each in matching if _matches(states.get(each.id), request)]
            for each in matching:
                room -= each.size
                if chosen and room < 0:
                    return await self._statuses(chosen), chosen[-1].position
                chosen.append(each)
                if len(chosen) == request.limit:
                    last = None if each is found[-1] else each.position
                    return await self._statuses(chosen), last
            if len(found) <= window:
                return await self._statuses(chosen), None
            position = found[window - 1].position
        return await self._statuses(chosen), position

    async def _statuses(self, listed: Sequence[Listed]) -> list[CallbackStatus]:
        rows = await self._store.statuses([each.id for each in listed])
        return [_status(rows[each.id]) for each in listed if each.id in rows]

    async def cancel(self, client_id: str, command: CancelCallback) -> CancelResponse:
        """Cancel a callback."""
        id_ = await self._store.find(client_id, command.id, command.group_key, command.event_key)
        if id_ is None:
            return CancelResponse(id=None, result=CancelResult.NOT_FOUND)
        results = await self._cancel([id_], command.if_match)
        return CancelResponse(id=id_, result=results[id_])

    async def cancel_group(
        self, client_id: str, command: CancelCallback
    ) -> CancelGroupResponse | Failure:
        """Cancel callbacks of a group for some seconds, from the command's cursor on.

        Batches of all groups take turns, so groups never hold more than one connection.

        Raises:
            InfrastructureError: other groups take all the time.
        """
        assert command.group_key is not None  # noqa: S101 - `whole_group` implies it
        position = START
        if command.cursor is not None:
            try:
                position = decode_cursor(command.cursor)
            except ValueError:
                return INVALID_CURSOR
        items: list[CancelResponse] = []
        counts: dict[CancelResult, int] = {}
        started = monotonic()
        while not counts or monotonic() - started < GROUP_TIME:
            if not await self._group_turn_within(started + GROUP_TIME - monotonic()):
                break
            try:
                members = await self._store.group_members(
                    client_id, command.group_key, position, GROUP_BATCH_SIZE
                )
                results = await self._cancel_members(members)
            except InfrastructureError as error:
                # Earlier batches are committed.
                unknown = bool(counts) or error.effect_unknown
                raise InfrastructureError(str(error), effect_unknown=unknown) from error
            finally:
                self._group_turn.release()
            for id_, result in results.items():
                counts[result] = counts.get(result, 0) + 1
                if len(items) < GROUP_BATCH_SIZE:
                    items.append(CancelResponse(id=id_, result=result))
            if len(members) < GROUP_BATCH_SIZE:
                return CancelGroupResponse(items=items, counts=counts)
            position = members[-1].position
        if not counts:
            raise InfrastructureError("other groups are being cancelled", effect_unknown=False)
        return CancelGroupResponse(items=items, counts=counts, next_cursor=encode_cursor(position))

    async def _group_turn_within(self, seconds: float) -> bool:
        """Return whether the next turn began within this time; then release it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._group_turn.acquire()
        return False

    async def _cancel_members(self, members: Sequence[Member]) -> dict[UUID, CancelResult]:
        """Cancel those that have not ended; nothing is locked or loaded for the others."""
        unfinished = [member.position[1] for member in members if member.unfinished]
        cancelled = await self._cancel(unfinished) if unfinished else {}
        return {
            id_: cancelled.get(id_) or _CANCEL_RESULTS.get(status, CancelResult.IN_FLIGHT)
            for (_, id_), status, _ in members
        }

    async def _cancel(
        self, ids: Sequence[UUID], if_match: Sequence[str] | None = None
    ) -> dict[UUID, CancelResult]:
        def next_state(
            callback: ScheduledCallback, _: datetime
        ) -> tuple[ScheduledCallback, Sequence[Transition]]:
            domain.check_match(callback, if_match)
            after, transition = domain.cancel(callback)
            return after, () if transition is None else (transition,)

        written = await self._changes.write(ids, next_state)
        results = {
            id_: CancelResult.CANCELLED if callback.finished else CancelResult.IN_FLIGHT
            for id_, callback in written.found.items()
        }
        rest = [id_ for id_ in ids if id_ not in results]
        try:
            finished = await self._store.finished(rest) if rest else {}
        except InfrastructureError as error:
            unknown = bool(written.changed)  # these are committed
            raise InfrastructureError(str(error), effect_unknown=unknown) from error
        for id_ in rest:
            # A callback that is in neither table was restarted between the two statements.
            callback = finished.get(id_)
            if callback is not None:
                domain.check_match(callback, if_match)
            results[id_] = (
                CancelResult.IN_FLIGHT if callback is None else _CANCEL_RESULTS[callback.status]
            )
        return {id_: results[id_] for id_ in ids}

    async def reschedule(
        self, client_id: str, command: RescheduleCallback
    ) -> RescheduleResponse | Failure:
        """Change the due time of a callback, and count its attempts from zero; or its content."""
        await self._clock.wait_synced()
        if errors := run_at_errors(command.run_at, self._clock.now()):
            return invalid(errors)
        id_ = await self._store.find(client_id, command.id, command.group_key, command.event_key)
        if id_ is None:
            return RescheduleResponse(id=None, result=RescheduleResult.NOT_FOUND, run_at=None)
        response: RescheduleResponse | Failure | None = None
        after: ScheduledCallback | None = None

        def decide(
            callback: ScheduledCallback, content: Content, now: datetime
        ) -> tuple[ScheduledCallback, Content] | None:
            nonlocal response, after
            domain.check_match(callback, command.if_match)
            result = RescheduleResult.IN_FLIGHT
            changed: tuple[ScheduledCallback, Content] | None = None
            if not callback.in_flight:
                new = self._change(callback, content, command)
                if isinstance(new, Failure):
                    response = new
                    return None
                result = RescheduleResult.CHANGED
                if command.changes_time:
                    result = RescheduleResult.RESCHEDULED
                callback = domain.changed(callback, command, now)
                changed, after = (callback, new), callback
            response = RescheduleResponse(id=id_, result=result, run_at=callback.run_at)
            return changed

        await self._store.change(id_, decide)
        if after is not None:
            self._changed(after, moved=command.changes_time)
        if response is not None:
            return response
        callback = (await self._store.finished([id_])).get(id_)
        if callback is None:  # restarted between the two statements
            return RescheduleResponse(id=id_, result=RescheduleResult.IN_FLIGHT, run_at=None)
        domain.check_match(callback, command.if_match)
        result = _RESCHEDULE_RESULTS[callback.status]
        return RescheduleResponse(id=id_, result=result, run_at=callback.run_at)

    def _changed(self, callback: ScheduledCallback, *, moved: bool) -> None:
        self._wake_at(callback.next_at)
        if moved:
            self._facts.rescheduled(callback, self._clock.now())

    async def run(self, client_id: str, request: RunCallback) -> RunResponse:
        """Make a waiting callback due now."""
        id_ = await self._store.find(client_id, request.id, None, None)
        if id_ is None:
            return RunResponse(id=None, result=RunResult.NOT_FOUND)
        result = RunResult.IN_FLIGHT
        waiting: list[ScheduledCallback] = []

        def decide(
            callbacks: Mapping[UUID, ScheduledCallback], now: datetime
        ) -> list[ScheduledCallback]:
            nonlocal result
            waiting.clear()
            for callback in callbacks.values():
                domain.check_match(callback, request.if_match)
                if not callback.in_flight:
                    waiting.append(domain.run_now(callback, now))
            result = RunResult.STARTED if waiting else RunResult.IN_FLIGHT
            return waiting

        now = await self._store.update([id_], decide)
        if result is RunResult.STARTED:
            await self._clock.wait_synced()
            self._wake_at(now)
            self._facts.rescheduled(waiting[0], now)
            return RunResponse(id=id_, result=result)
        if (callback := (await self._store.finished([id_])).get(id_)) is not None:
            domain.check_match(callback, request.if_match)
            result = _RUN_RESULTS[callback.status]
        return RunResponse(id=id_, result=result)

    async def replace(
        self, new: NewCallback, if_match: Sequence[str] | None
    ) -> ScheduledCallback | None:
        """Replace the request of a waiting callback; return None if it does not wait."""

        def decide(callback: ScheduledCallback, now: datetime) -> ScheduledCallback | None:
            domain.check_match(callback, if_match)
            if callback.in_flight:
                return None
            run_at = new.run_at or now + timedelta(seconds=new.delay)
            return domain.replaced(callback, run_at, now)

        after = await self._store.replace(new, decide)
        if after is not None:
            self._wake_at(after.next_at)
            self._facts.rescheduled(after, self._clock.now())
            return after
        if (callback := (await self._store.finished([new.id])).get(new.id)) is not None:
            domain.check_match(callback, if_match)
        return None

    async def find(self, client_id: str, command: ScheduleCallback) -> UUID | None:
        """Return the id of the client's callback with the same keys, if any."""
        return await self._store.find(client_id, None, command.group_key, command.event_key)

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


def _matches(state: tuple[str, str | None] | None, request: ListCallbacks) -> bool:
    if state is None:
        return False
    status, group_key = state
    return status == request.status and request.group_key in (None, group_key)


def _repeat(recurrence: Recurrence) -> Repetition:
    return Repetition(
        every=recurrence.every,
        cron=recurrence.cron,
        timezone=None if recurrence.cron is None else recurrence.timezone,
        until=recurrence.until,
        count=recurrence.count,
    )


def _status(row: Any) -> CallbackStatus:
    recurrence = domain.parse_rules(row["rules"]).recurrence
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
        occurrence=None if recurrence is None else row["occurrence"],
        repeat=None if recurrence is None else _repeat(recurrence),
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        etag=domain.etag(
            row["status"],
            row["run_at"],
            row["dispatch"],
            row["occurrence"],
            row["attempts"],
            attempt_at=row["next_at"],
            cancel_requested=row["cancel_requested"],
        ),
    )
