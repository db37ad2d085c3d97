"""Due times of recurring callbacks: an interval, or a cron expression in a time zone."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cronsim import CronSim

from shared.contracts.schedules import time_zone


@dataclass(frozen=True, slots=True)
class Recurrence:
    """An interval in seconds or a cron expression, with an optional end."""

    every: float | None = None
    cron: str | None = None
    timezone: str = "UTC"
    until: datetime | None = None
    count: int | None = None


def next_due(
    recurrence: Recurrence, last: datetime, occurrence: int, now: datetime
) -> datetime | None:
    """Return when the next occurrence is due, or None if number `occurrence` was the last.

    `last` is the due time of that occurrence. The result is after both `last` and `now`: missed
    occurrences coalesce into one. An interval stays aligned to the first due time.
    """
    if recurrence.count is not None and occurrence >= recurrence.count:
        return None
    if recurrence.every is not None:
        steps = max(int((now - last).total_seconds() // recurrence.every) + 1, 1)
        due: datetime | None = last + timedelta(seconds=recurrence.every) * steps
    else:
        due = _next_match(recurrence, max(last, now))
    return _within_end(recurrence, due)


def next_occurrences(
    recurrence: Recurrence, last: datetime, occurrence: int, now: datetime, limit: int
) -> list[datetime]:
    """Return when the occurrences after number `occurrence` are due, `limit` of them at most."""
    times: list[datetime] = []
    while len(times) < limit and (due := next_due(recurrence, last, occurrence, now)) is not None:
        times.append(due)
        last, occurrence = due, occurrence + 1
    return times


def first_due(recurrence: Recurrence, earliest: datetime) -> datetime | None:
    """Return the first due time at or after `earliest`, or None if it is after `until`."""
    if recurrence.cron is None:
        return _within_end(recurrence, earliest)
    # cronsim returns matches strictly after the given time.
    return _within_end(recurrence, _next_match(recurrence, earliest - timedelta(microseconds=1)))


def _within_end(recurrence: Recurrence, due: datetime | None) -> datetime | None:
    if due is None or (recurrence.until is not None and due > recurrence.until):
        return None
    return due


def _next_match(recurrence: Recurrence, after: datetime) -> datetime | None:
    """Return the first cron match strictly after a time.

    A local time that a clock change skips is due right after the change. A fixed local time that
    the clock repeats is due once, the first time.
    """
    assert recurrence.cron is not None  # noqa: S101 - the contract requires `every` or `cron`
    matches = CronSim(recurrence.cron, after.astimezone(time_zone(recurrence.timezone)))
    # In a repeated hour, cronsim continues from the first time that the clock showed `after`.
    return next((due for match in matches if (due := match.astimezone(UTC)) > after), None)
