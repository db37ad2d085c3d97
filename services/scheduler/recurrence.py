"""When a recurring event is due next: by an interval, or by a cron expression in a time zone."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cronsim import CronSim

from shared.contracts.schedules import zone


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Every so many seconds, or a cron expression in a zone; until a moment, or so many times."""

    every: float | None = None
    cron: str | None = None
    timezone: str = "UTC"
    until: datetime | None = None
    count: int | None = None


def following(rhythm: Rhythm, last: datetime, occurrence: int, now: datetime) -> datetime | None:
    """The due moment after occurrence number `occurrence`, due at `last`; None if it was the last.

    Strictly after both `last` and `now`: occurrences that were missed meanwhile coalesce into the
    one that was late. An interval keeps its grid.
    """
    if rhythm.count is not None and occurrence >= rhythm.count:
        return None
    if rhythm.every is not None:
        steps = max(int((now - last).total_seconds() // rhythm.every) + 1, 1)
        due: datetime | None = last + timedelta(seconds=rhythm.every) * steps
    else:
        due = _from(rhythm, max(last, now))
    if due is None or (rhythm.until is not None and due > rhythm.until):
        return None
    return due


def first(rhythm: Rhythm, earliest: datetime) -> datetime | None:
    """The first due moment at or after `earliest`; None if there is none."""
    if rhythm.cron is None:
        due: datetime | None = earliest
    else:  # cron knows whole minutes, and the library gives what is strictly after
        due = _from(rhythm, earliest - timedelta(microseconds=1))
    if due is None or (rhythm.until is not None and due > rhythm.until):
        return None
    return due


def _from(rhythm: Rhythm, after: datetime) -> datetime | None:
    """The first match strictly after a moment.

    A local time that a clock change leaves out is due when the clock has jumped; one that it
    repeats is due once, where the hour is fixed.
    """
    assert rhythm.cron is not None  # noqa: S101 - one of the two is given
    try:
        due: datetime = next(CronSim(rhythm.cron, after.astimezone(zone(rhythm.timezone))))
    except StopIteration:
        return None
    return due.astimezone(UTC)
