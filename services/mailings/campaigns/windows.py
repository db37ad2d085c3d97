"""Local hours: when clients of a time zone may get messages. Pure functions, no IO."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
# Days to look back for a window that is still open. One over midnight began the day before, and
# Samoa has skipped a day.
_DAYS_BACK: Final = 3


class Hours(NamedTuple):
    """An interval of the local time of day, over midnight if `closes` is before `opens`."""

    opens: time
    closes: time


class Window(NamedTuple):
    """The instants, in UTC, from an opening until before the next closing."""

    opens: datetime
    closes: datetime


def current_or_next(hours: Hours, zone: ZoneInfo, at: datetime) -> Window:
    """Return the window that contains an instant, or else the first one after it.

    No instant in a window is outside the local hours. Each local day has at most one opening. A day
    on which the whole interval is skipped by the clock has none.
    """
    first = at.astimezone(zone).date() - _DAYS_BACK * _DAY
    return next(window for window in _windows(hours, zone, first) if at < window.closes)


def _windows(hours: Hours, zone: ZoneInfo, day: date) -> Iterator[Window]:
    """Return the windows that open on this local day and later."""
    over_midnight = hours.closes < hours.opens
    while True:
        closing_day = day + _DAY if over_midnight else day
        opens = _instant(datetime.combine(day, hours.opens), zone, last=True)
        closes = _instant(datetime.combine(closing_day, hours.closes), zone, last=False)
        if closes <= opens:  # both times occur twice: the first interval is used
            opens = _instant(datetime.combine(day, hours.opens), zone, last=False)
        if opens < closes:
            yield Window(opens, closes)
        day += _DAY


def _instant(local: datetime, zone: ZoneInfo, *, last: bool) -> datetime:
    """Return when the clock shows a local time, in UTC; `last`: the second time, if it does twice.

    If the clock skips it, the result is the instant of the skip.
    """
    first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if second < first:
        return _skip(zone, second, first)
    return second if last else first


def _skip(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """Return the first instant with the later offset, to the second; the clock skips in between."""
    offset = after.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + (after - before) // 2
        middle = middle.replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after
