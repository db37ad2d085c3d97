"""Simulated callbacks, and the dispatches of those that are the scheduler's. Pure."""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from services.callback.domain import retry_policy
from services.callback.settings import CallbackSettings
from services.scheduler.domain import (
    DEFAULT_BASE_DELAY,
    QUICK_DELAYS,
    Rules,
    ScheduledCallback,
    claimed,
    dispatch_failed,
)
from services.simulator.figures import TargetFigures
from services.simulator.receivers import Receiver
from services.simulator.scenario import Failure, Target
from shared.contracts.callback import Retry, SendCallback
from shared.contracts.schedules import Status
from shared.resilience.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class Source:
    """The callbacks to one target: what they have in common.

    counted: the figures of the target, and those of all targets if there are several.
    """

    target: Target
    rate: float
    callbacks: int
    policy: RetryPolicy
    receiver: Receiver
    counted: tuple[TargetFigures, ...]


@dataclass(slots=True, eq=False)
class Callback:
    """A callback, with what its message carries in headers.

    lasting: the failure of all its attempts, or None. first_at: infinite before the first attempt
    or deferral. scheduled: the state in the scheduler, if it is scheduled.
    """

    source: Source
    host: str
    created: float
    policy: RetryPolicy
    lasting: Failure | None
    attempt: int = 1
    first_at: float = math.inf
    not_before: float = 0.0
    deferrals: int = 0
    scheduled: ScheduledCallback | None = None


def policy_of(target: Target, settings: CallbackSettings) -> RetryPolicy:
    """Return the retry policy of the callbacks to a target, or of one dispatch of theirs."""
    retry = target.retry
    if target.scheduled is not None:
        quick = target.scheduled.quick_retries_count
        retry = Retry(quick_retries_count=quick, delays=list(QUICK_DELAYS))
    command = SendCallback(
        target_url="https://target.example/", payload=None, unsigned=True, retry=retry
    )
    return retry_policy(command, give_up_after=settings.give_up_after)


def new_callback(source: Source, number: int, now: float) -> Callback:
    """Return callback `number` of a source, due now."""
    host = f"{source.target.name}/{number % source.target.hosts}"
    callback = Callback(source, host, now, source.policy, source.receiver.lasting_failure())
    if (retry := source.target.scheduled) is not None:
        at = _moment(now)
        rules = Rules(retry.base_delay or DEFAULT_BASE_DELAY, retry.delay_growth_rate or 1.0)
        callback.scheduled = ScheduledCallback(UUID(int=0), "", None, None, at, at, rules=rules)
    return callback


def begin_dispatch(callback: Callback, now: float) -> bool:
    """Dispatch a scheduled callback as a claim does. Return False if it has failed instead."""
    state, retry = callback.scheduled, callback.source.target.scheduled
    if state is None or retry is None:
        return True
    at = _moment(now)
    state, _ = claimed(state, at)
    callback.scheduled = state
    if state.finished:
        return False
    stop_at = state.stop_at
    if stop_at is None or state.attempts == 0:
        stop_at = at + timedelta(seconds=retry.stop_after_delay)
    callback.scheduled = replace(
        state,
        status=Status.RETRYING if state.attempts else Status.DISPATCHED,
        in_flight=True,
        dispatch=state.dispatch + 1,
        stop_at=stop_at,
    )
    callback.policy = replace(callback.source.policy, expires_at=stop_at.timestamp())
    callback.attempt, callback.deferrals = 1, 0
    callback.first_at, callback.not_before = math.inf, 0.0
    return True


def end_dispatch(
    callback: Callback, now: float, *, final: bool, retry_after: float, attempted: bool
) -> float | None:
    """End a dispatch without success. Return the time of the main retry, or None without one.

    final: no attempt can succeed. attempted: whether it ended with an attempt.
    """
    state = callback.scheduled
    if state is None:
        return None
    attempts = callback.attempt - (not attempted)
    callback.scheduled, _ = dispatch_failed(
        *(state, state.dispatch, attempts, "failed", _moment(now)),
        final=final,
        retry_after=retry_after,
    )
    if callback.scheduled.finished:
        return None
    return max(callback.scheduled.next_at.timestamp(), now)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
