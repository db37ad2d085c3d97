"""The life of a scheduled callback: pure functions from one state to the next.

Each function returns the new state and, if the change must be reported, a `Transition`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from json import loads
from typing import Any, Final
from uuid import UUID

from services.scheduler.recurrence import Recurrence, next_due
from shared.contracts.schedule_changes import RescheduleCallback
from shared.contracts.schedules import MAX_DELAY_AHEAD, RetryParams, ScheduleCallback, Status
from shared.errors import PermanentError
from shared.resilience.retry import JITTER, attempts_text

DEFAULT_BASE_DELAY: Final = 60.0
# Seconds for one attempt without its own timeout: the callback service's default.
DEFAULT_TIMEOUT: Final = 10.0
# Seconds before each quick retry, each one of a retry tier. The last one repeats. The default five
# take 51 s, and up to 77 s with their jitter.
QUICK_DELAYS: Final = (1.0, 5.0, 15.0)
FINAL_STATUSES: Final = frozenset({Status.NOTIFIED, Status.FAILED, Status.CANCELLED})


# Seconds until a replaced callback is due. A claim that reads the old request ends within 4 s.
REPLACEMENT_DELAY: Final = 5.0


class PreconditionFailedError(PermanentError):
    """The callback is not in the state that the client has read."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a callback for failed dispatches, misfires and recurrence.

    base_delay: seconds before the first main retry; each further delay is `growth` times the last.
    grace: a first attempt that is more seconds late is skipped; None to make it anyway.
    """

    base_delay: float = DEFAULT_BASE_DELAY
    growth: float = 1.0
    grace: float | None = None
    recurrence: Recurrence | None = None


@dataclass(frozen=True, slots=True)
class ScheduledCallback:
    """A callback that a client registered. All times are the database's.

    run_at: when the current occurrence is due.
    next_at: when the scheduler acts next: the due time, the next main retry, or the end of the
    lease while the callback is `in_flight`.
    cancel_requested: cancelled while in flight; no main retry follows.
    dispatch: the number of dispatches so far. Those before `first_dispatch` belong to an earlier
    occurrence or to the time before a reschedule.
    dispatch_attempts: attempts in the current dispatch; earlier_attempts: in the dispatches before
    it, from `first_dispatch` on.
    next_attempt_at: when the next quick retry is due.
    stop_at: no attempt starts from then on; None before the first dispatch.
    """

    id: UUID
    client_id: str
    group_key: str | None
    event_key: str | None
    run_at: datetime
    next_at: datetime
    occurrence: int = 1
    status: Status = Status.SCHEDULED
    in_flight: bool = False
    cancel_requested: bool = False
    dispatch: int = 0
    first_dispatch: int = 1
    main_retries: int = 0
    earlier_attempts: int = 0
    dispatch_attempts: int = 0
    next_attempt_at: datetime | None = None
    stop_at: datetime | None = None
    last_error: str | None = None
    rules: Rules = Rules()

    @property
    def attempts(self) -> int:
        """Attempts since it was last due."""
        return self.earlier_attempts + self.dispatch_attempts

    @property
    def finished(self) -> bool:
        """Whether its status is final."""
        return self.status in FINAL_STATUSES

    @property
    def attempt_at(self) -> datetime | None:
        """The time of the next attempt, as its status shows it; None if it is unknown."""
        if self.finished:
            return None
        return self.next_attempt_at if self.in_flight else self.next_at

    @property
    def recurs(self) -> bool:
        """Whether it has several occurrences."""
        return self.rules.recurrence is not None


@dataclass(frozen=True, slots=True)
class Transition:
    """A change to report as a fact, a metric and a log line.

    status: NOTIFIED, FAILED, CANCELLED or RETRYING, of this occurrence.
    """

    callback: ScheduledCallback
    status: Status
    error: str | None = None
    next_at: datetime | None = None
    misfired: bool = False


Step = tuple[ScheduledCallback, Transition | None]


def main_delay(rules: Rules, retries: int) -> float:
    """Return the seconds before main retry number `retries` + 1, at most ten years."""
    try:
        return min(rules.base_delay * math.pow(rules.growth, retries), MAX_DELAY_AHEAD)
    except OverflowError:
        return MAX_DELAY_AHEAD


def max_quick_delay(count: int) -> float:
    """Return the maximum seconds that `count` quick retries wait in the tiers, with jitter."""
    total = sum(QUICK_DELAYS[:count]) + max(count - len(QUICK_DELAYS), 0) * QUICK_DELAYS[-1]
    return total * (1 + JITTER)


def lease(retry: RetryParams, timeout: float | None, *, slack: float) -> float:
    """Return the seconds after which an unsettled dispatch is repeated.

    That is the time its attempts can take, and `slack` for the queues in both directions.
    """
    count = retry.quick_retries_count
    attempts = (count + 1) * (timeout or DEFAULT_TIMEOUT)
    return min(max_quick_delay(count) + attempts, retry.stop_after_delay) + slack


def claimed(callback: ScheduledCallback, now: datetime) -> Step:
    """Return the same callback if it is to be dispatched, otherwise its next state."""
    if callback.cancel_requested:
        return _finish_occurrence(callback, Status.CANCELLED, callback.last_error, now)
    attempted = callback.attempts > 0
    if attempted and callback.stop_at is not None and callback.stop_at <= now:
        return _gave_up(callback, callback.last_error or "no response", now)
    grace = callback.rules.grace
    late = (now - callback.run_at).total_seconds()
    if grace is not None and not attempted and late > grace:
        error = f"misfire: {late:.0f} s late, at most {grace:.0f} s are allowed"
        after, transition = _finish_occurrence(callback, Status.FAILED, error, now)
        return after, replace(transition, misfired=True)
    return callback, None


def attempt_failed(
    callback: ScheduledCallback,
    dispatch: int | None,
    attempt: int,
    error: str,
    next_attempt_at: datetime,
) -> Step:
    """Record a failed attempt that a quick retry follows."""
    if (
        not callback.in_flight
        or dispatch != callback.dispatch
        or attempt <= callback.dispatch_attempts
    ):
        return callback, None
    after = replace(
        callback,
        status=Status.RETRYING,
        dispatch_attempts=attempt,
        next_attempt_at=next_attempt_at,
        last_error=error,
    )
    return after, None


def delivered(
    callback: ScheduledCallback, dispatch: int | None, attempt: int, now: datetime
) -> Step:
    """Finish the occurrence as notified, by any of its dispatches."""
    if dispatch is not None and dispatch < callback.first_dispatch:
        return callback, None
    callback = _with_attempts(callback, dispatch, attempt)
    return _finish_occurrence(callback, Status.NOTIFIED, callback.last_error, now)


def dispatch_failed(  # noqa: PLR0913 - the fields of the fact
    callback: ScheduledCallback,
    dispatch: int | None,
    attempt: int,
    reason: str,
    now: datetime,
    *,
    final: bool,
    retry_after: float = 0.0,
) -> Step:
    """Plan a main retry, or fail if no attempt can succeed (`final`) or `stop_at` is earlier.

    The retry waits at least `retry_after` seconds, as the receiver requested. A dispatch without an
    attempt, `attempt` 0, is no main retry. It is repeated after a minute at most.
    """
    if not callback.in_flight or dispatch != callback.dispatch:
        return callback, None
    callback = replace(_with_attempts(callback, dispatch, attempt), last_error=reason)
    if callback.cancel_requested:
        return _finish_occurrence(callback, Status.CANCELLED, reason, now)
    if final:
        return _finish_occurrence(callback, Status.FAILED, reason, now)
    delay = main_delay(callback.rules, callback.main_retries)
    attempted = callback.dispatch_attempts > 0
    if not attempted:
        delay = min(delay, DEFAULT_BASE_DELAY)
    next_at = now + timedelta(seconds=max(delay, retry_after))
    expired = callback.stop_at is not None and next_at >= callback.stop_at
    if expired and callback.attempts > 0:
        return _gave_up(callback, reason, now)
    callback = replace(
        callback,
        status=Status.RETRYING,
        in_flight=False,
        next_at=next_at,
        earlier_attempts=callback.attempts,
        dispatch_attempts=0,
        next_attempt_at=None,
        main_retries=callback.main_retries + attempted,
        # A callback without any attempt never expires: the time until `stop_at` starts again.
        stop_at=None if expired else callback.stop_at,
    )
    return callback, Transition(callback, Status.RETRYING, reason, next_at)


def cancel(callback: ScheduledCallback) -> Step:
    """Cancel a callback; if it is in flight, only stop its main retries."""
    if callback.in_flight:
        return replace(callback, cancel_requested=True), None
    callback = replace(callback, status=Status.CANCELLED)
    return callback, Transition(callback, Status.CANCELLED)


def reschedule(callback: ScheduledCallback, run_at: datetime, now: datetime) -> ScheduledCallback:
    """Return the callback due at `run_at`, with no attempts counted."""
    return replace(
        callback,
        run_at=run_at,
        next_at=max(run_at, now),
        status=Status.SCHEDULED,
        in_flight=False,
        cancel_requested=False,
        first_dispatch=callback.dispatch + 1,
        main_retries=0,
        earlier_attempts=0,
        dispatch_attempts=0,
        next_attempt_at=None,
        stop_at=None,
    )


def run_now(callback: ScheduledCallback, now: datetime) -> ScheduledCallback:
    """Return a waiting callback due now. `run_at` stays, because the next occurrence follows it."""
    return replace(callback, next_at=now)


def changed(
    callback: ScheduledCallback, command: RescheduleCallback, now: datetime
) -> ScheduledCallback:
    """Return a waiting callback as a command changes it."""
    if command.changes_time:
        run_at = command.run_at or now + timedelta(seconds=command.delay or 0.0)
        callback = reschedule(callback, run_at, now)
    return content_changed(callback, now) if command.changes_content else callback


def content_changed(callback: ScheduledCallback, now: datetime) -> ScheduledCallback:
    """Return a waiting callback whose request was changed.

    A claim that began before this can still read the old request, so it must not be due yet for it.
    """
    dispatched = callback.dispatch >= callback.first_dispatch
    return replace(
        callback,
        dispatch=callback.dispatch + 1,
        first_dispatch=callback.first_dispatch + (not dispatched),
        next_at=max(callback.next_at, now + timedelta(seconds=REPLACEMENT_DELAY)),
    )


def replaced(callback: ScheduledCallback, run_at: datetime, now: datetime) -> ScheduledCallback:
    """Return a waiting callback with a new request, as if it had just been created."""
    callback = content_changed(reschedule(callback, run_at, now), now)
    return replace(callback, occurrence=1, last_error=None)


def etag(  # noqa: PLR0913 - the state
    status: str,
    run_at: datetime,
    dispatch: int,
    occurrence: int,
    attempts: int,
    *,
    attempt_at: datetime | None,
    cancel_requested: bool,
) -> str:
    """Return the entity tag of a state, in quotes.

    A new request counts as a dispatch, so it changes the tag, too.
    """
    following = None if attempt_at is None else attempt_at.timestamp()
    state = f"{status} {run_at.timestamp()} {following} {dispatch} {occurrence} {attempts}"
    state += f" {cancel_requested}"
    return f'"{blake2b(state.encode(), digest_size=12).hexdigest()}"'


def check_match(callback: ScheduledCallback, if_match: Sequence[str] | None) -> None:
    """Check that a callback is in one of the states with these entity tags; None permits any.

    Raises:
        PreconditionFailedError: it is in another state.
    """
    if if_match is None or "*" in if_match:
        return
    current = etag(
        callback.status,
        callback.run_at,
        callback.dispatch,
        callback.occurrence,
        callback.attempts,
        attempt_at=callback.attempt_at,
        cancel_requested=callback.cancel_requested,
    )
    if current not in if_match:
        raise PreconditionFailedError("the callback has changed since its etag was read")


def _with_attempts(
    callback: ScheduledCallback, dispatch: int | None, attempt: int
) -> ScheduledCallback:
    current = dispatch is None or dispatch == callback.dispatch
    attempts = callback.dispatch_attempts
    return replace(callback, dispatch_attempts=max(attempts, attempt) if current else attempts + 1)


def _gave_up(callback: ScheduledCallback, error: str, now: datetime) -> Step:
    text = f"gave up after {attempts_text(callback.attempts)}: {error}"
    return _finish_occurrence(callback, Status.FAILED, text, now)


def _finish_occurrence(
    callback: ScheduledCallback, status: Status, error: str | None, now: datetime
) -> tuple[ScheduledCallback, Transition]:
    """Finish this occurrence, and plan the next one unless it was the last or is cancelled."""
    callback = replace(
        callback, earlier_attempts=callback.attempts, dispatch_attempts=0, last_error=error
    )
    transition = Transition(callback, status, error)
    if callback.rules.recurrence is not None:
        if callback.cancel_requested:
            return replace(callback, status=Status.CANCELLED, in_flight=False), transition
        due = next_due(callback.rules.recurrence, callback.run_at, callback.occurrence, now)
        if due is not None:
            following = reschedule(callback, due, now)
            return replace(following, occurrence=callback.occurrence + 1), transition
    return replace(callback, status=status, in_flight=False), transition


def stored_rules(command: ScheduleCallback) -> dict[str, Any] | None:
    """Return the rules of a command in their stored form, without defaults."""
    retry, misfire, repeat = command.retry, command.misfire, command.repeat
    stored: dict[str, Any] = {}
    if retry.base_delay is not None:
        stored["base_delay"] = retry.base_delay
    if retry.delay_growth_rate is not None:
        stored["growth"] = retry.delay_growth_rate
    if misfire.policy == "skip":
        stored["grace"] = misfire.grace
    if repeat is not None:
        stored["repeat"] = repeat.model_dump(mode="json", exclude_defaults=True)
    return stored or None


@lru_cache(maxsize=4096)
def parse_rules(stored: str | None) -> Rules:
    """Return the rules that `stored_rules` stored as JSON; None stands for the defaults."""
    if stored is None:
        return Rules()
    found: Mapping[str, Any] = loads(stored)
    repeat = found.get("repeat")
    return Rules(
        base_delay=found.get("base_delay", DEFAULT_BASE_DELAY),
        growth=found.get("growth", 1.0),
        grace=found.get("grace"),
        recurrence=None if repeat is None else _parse_recurrence(repeat),
    )


def _parse_recurrence(repeat: Mapping[str, Any]) -> Recurrence:
    until = repeat.get("until")
    return Recurrence(
        every=repeat.get("every"),
        cron=repeat.get("cron"),
        timezone=repeat.get("timezone", "UTC"),
        until=None if until is None else datetime.fromisoformat(until),
        count=repeat.get("count"),
    )
