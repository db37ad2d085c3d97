"""The life of a scheduled event: pure functions from its state and what happened to the next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from json import loads
from typing import Any, Final
from uuid import UUID

from services.scheduler.recurrence import Rhythm, following
from shared.contracts.schedules import MAX_DELAY_AHEAD, RetryParams, ScheduleCallback, Status
from shared.topology import TIERS

DEFAULT_BASE_DELAY: Final = 60.0
# A wait is stretched by up to half in the tiers (shared/resilience/retry.py).
STRETCH: Final = 1.5
# Seconds for one try that names no timeout: what the callback service grants by default.
DEFAULT_TIMEOUT: Final = 10.0
ENDS: Final = frozenset({Status.NOTIFIED, Status.FAILED, Status.CANCELLED})


@dataclass(frozen=True, slots=True)
class Rules:
    """What an event does after a try, a misfire, or its occurrence.

    base_delay, growth: seconds before the first main retry, and their factor each time.
    grace: seconds late from which on a first dispatch is skipped; None: never.
    """

    base_delay: float = DEFAULT_BASE_DELAY
    growth: float = 1.0
    grace: float | None = None
    rhythm: Rhythm | None = None


@dataclass(frozen=True, slots=True)
class ScheduledCallback:
    """A live event. All moments are the database's.

    run_at: when the current occurrence is due. next_at: when it wants attention: the due moment,
    the next main retry, or the end of the lease while it is `in_flight`.
    dispatch counts all dispatches; those before `first_dispatch` belong to an earlier promise (an
    earlier occurrence, or before it was moved). attempts: tries of earlier dispatches of this
    promise; tries: of this one; try_at: when its next quick retry is due.
    stop_at: no try starts from then on; None before the first dispatch.
    cancelled: somebody cancelled it in flight.
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
    cancelled: bool = False
    dispatch: int = 0
    first_dispatch: int = 1
    retries: int = 0
    attempts: int = 0
    tries: int = 0
    try_at: datetime | None = None
    stop_at: datetime | None = None
    last_error: str | None = None
    rules: Rules = Rules()

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDS


@dataclass(frozen=True, slots=True)
class Happened:
    """What an event went through, for a fact, a metric and a log line.

    status: NOTIFIED, FAILED, CANCELLED or RETRYING, of this occurrence.
    """

    event: ScheduledCallback
    status: Status
    error: str | None = None
    next_at: datetime | None = None
    misfired: bool = False


Step = tuple[ScheduledCallback, Happened | None]


def main_delay(rules: Rules, retries: int) -> float:
    """Seconds before main retry number `retries` + 1; never more than ten years."""
    try:
        return min(rules.base_delay * math.pow(rules.growth, retries), MAX_DELAY_AHEAD)
    except OverflowError:
        return MAX_DELAY_AHEAD


def quick_wait(count: int) -> float:
    """Seconds that so many quick retries wait at most, in the tiers from the shortest on."""
    waits = [tier.seconds for tier in TIERS]
    known = sum(waits[:count]) + max(count - len(waits), 0) * waits[-1]
    return known * STRETCH


def lease(retry: RetryParams, timeout: float | None, *, slack: float) -> float:
    """Seconds after which a dispatch that nothing was heard of is fired again.

    What its tries can take, or are allowed to, and `slack` for the way there and back.
    """
    count = retry.quick_retries_count
    tries = (count + 1) * (timeout or DEFAULT_TIMEOUT)
    return min(quick_wait(count) + tries, retry.stop_after_delay) + slack


def taken(event: ScheduledCallback, now: datetime) -> Step:
    """What becomes of an event that was claimed: the same one is to be fired, any other is not."""
    if event.cancelled:
        return _end(event, Status.CANCELLED, event.last_error, now)
    if event.stop_at is not None and event.stop_at <= now:
        error = f"gave up after {event.attempts} attempts: {event.last_error or 'no answer'}"
        return _end(event, Status.FAILED, error, now)
    grace = event.rules.grace
    late = (now - event.run_at).total_seconds()
    if grace is not None and event.dispatch == event.first_dispatch and late > grace:
        error = f"misfire: {late:.0f} s late, {grace:.0f} s are allowed"
        after, happened = _end(event, Status.FAILED, error, now)
        return after, replace(happened, misfired=True) if happened else None
    return event, None


def tried(
    event: ScheduledCallback, dispatch: int | None, attempt: int, error: str, try_at: datetime
) -> Step:
    """A quick try failed, another follows at `try_at`."""
    if not event.in_flight or dispatch != event.dispatch or attempt <= event.tries:
        return event, None
    return (
        replace(event, status=Status.RETRYING, tries=attempt, try_at=try_at, last_error=error),
        None,
    )


def delivered(event: ScheduledCallback, dispatch: int | None, attempt: int, now: datetime) -> Step:
    """The receiver took it, whichever dispatch of this promise brought it."""
    if dispatch is not None and dispatch < event.first_dispatch:
        return event, None
    event = _with_tries(event, dispatch, attempt)
    return _end(event, Status.NOTIFIED, event.last_error, now)


def given_back(  # noqa: PLR0913 - the fields of the fact
    event: ScheduledCallback,
    dispatch: int | None,
    attempt: int,
    reason: str,
    now: datetime,
    *,
    final: bool,
) -> Step:
    """The quick retries are spent, or no try can succeed (`final`): fail, or retry from here."""
    if not event.in_flight or dispatch != event.dispatch:
        return event, None
    event = replace(_with_tries(event, dispatch, attempt), last_error=reason)
    if event.cancelled:
        return _end(event, Status.CANCELLED, reason, now)
    if final:
        return _end(event, Status.FAILED, reason, now)
    next_at = now + timedelta(seconds=main_delay(event.rules, event.retries))
    tried_at_all = event.attempts + event.tries > 0
    stale = event.stop_at is not None and next_at >= event.stop_at
    if stale and tried_at_all:
        return _end(event, Status.FAILED, f"gave up: {reason}", now)
    event = replace(
        event,
        status=Status.RETRYING,
        in_flight=False,
        next_at=next_at,
        attempts=event.attempts + event.tries,
        tries=0,
        try_at=None,
        retries=event.retries + 1,
        # What was never tried is not stale, however long the way to the first try was.
        stop_at=None if stale else event.stop_at,
    )
    return event, Happened(event, Status.RETRYING, reason, next_at)


def cancel(event: ScheduledCallback) -> Step:
    """Somebody cancels it: ended, or in flight and to end with that."""
    if event.in_flight:
        return replace(event, cancelled=True), None
    event = replace(event, status=Status.CANCELLED, attempts=event.attempts + event.tries)
    return event, Happened(event, Status.CANCELLED)


def move(event: ScheduledCallback, run_at: datetime, now: datetime) -> ScheduledCallback:
    """A new promise: due at `run_at`, nothing tried yet."""
    return replace(
        event,
        run_at=run_at,
        next_at=max(run_at, now),
        status=Status.SCHEDULED,
        in_flight=False,
        cancelled=False,
        first_dispatch=event.dispatch + 1,
        retries=0,
        attempts=0,
        tries=0,
        try_at=None,
        stop_at=None,
    )


def _with_tries(event: ScheduledCallback, dispatch: int | None, attempt: int) -> ScheduledCallback:
    own = dispatch is None or dispatch == event.dispatch
    return replace(event, tries=max(event.tries, attempt) if own else event.tries + 1)


def _end(event: ScheduledCallback, status: Status, error: str | None, now: datetime) -> Step:
    """This occurrence ends; a recurring event goes on, unless it is cancelled or was the last."""
    event = replace(event, attempts=event.attempts + event.tries, tries=0, last_error=error)
    happened = Happened(event, status, error)
    if event.rules.rhythm is not None:
        if event.cancelled:
            return replace(event, status=Status.CANCELLED, in_flight=False), happened
        due = following(event.rules.rhythm, event.run_at, event.occurrence, now)
        if due is not None:
            moved = replace(move(event, due, now), occurrence=event.occurrence + 1)
            return moved, happened
    return replace(event, status=status, in_flight=False), happened


# -- from the wire to the rules, and from the store


def rules_of(order: ScheduleCallback) -> dict[str, Any] | None:
    """The rules of an order as they are stored, only what is not the default."""
    retry, misfire, repeat = order.retry, order.misfire, order.repeat
    found: dict[str, Any] = {}
    if retry.base_delay is not None:
        found["base_delay"] = retry.base_delay
    if retry.delay_growth_rate is not None:
        found["growth"] = retry.delay_growth_rate
    if misfire.policy == "skip":
        found["grace"] = misfire.grace
    if repeat is not None:
        found["repeat"] = repeat.model_dump(mode="json", exclude_defaults=True)
    return found or None


@lru_cache(maxsize=4096)
def rules(stored: str | None) -> Rules:
    """The rules from their stored form."""
    if stored is None:
        return Rules()
    found: Mapping[str, Any] = loads(stored)
    repeat = found.get("repeat")
    return Rules(
        base_delay=found.get("base_delay", DEFAULT_BASE_DELAY),
        growth=found.get("growth", 1.0),
        grace=found.get("grace"),
        rhythm=None
        if repeat is None
        else Rhythm(
            every=repeat.get("every"),
            cron=repeat.get("cron"),
            timezone=repeat.get("timezone", "UTC"),
            until=_moment(repeat.get("until")),
            count=repeat.get("count"),
        ),
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
