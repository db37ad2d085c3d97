"""M5: local hours in all time zones, on all days with a change of the clock."""

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mailings.campaigns.windows import Hours, Window, current_or_next

ZONES = sorted(available_timezones() - {"localtime"})
FIRST, LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2037, 12, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
times = st.builds(time, st.integers(0, 23), st.integers(0, 59))
intervals = st.tuples(times, times).filter(lambda pair: pair[0] != pair[1])


@cache
def transitions(name: str) -> list[datetime]:
    """Return the instants at which the offset of a zone changes, to the minute."""
    zone, found, at = ZoneInfo(name), [], FIRST
    while at < LAST:
        later = at + timedelta(days=7)
        if at.astimezone(zone).utcoffset() != later.astimezone(zone).utcoffset():
            before, after = at, later
            while after - before > MINUTE:
                middle = before + (after - before) // 2
                if middle.astimezone(zone).utcoffset() == before.astimezone(zone).utcoffset():
                    before = middle
                else:
                    after = middle
            found.append(after.replace(second=0, microsecond=0))
        at = later
    return found


@st.composite
def moments(draw: st.DrawFn) -> tuple[ZoneInfo, datetime]:
    """Return a zone and an instant, mostly within two days of a change of its clock."""
    name = draw(st.sampled_from(ZONES))
    minutes = draw(st.integers(-2 * 24 * 60, 2 * 24 * 60))
    changes = transitions(name)
    if changes and draw(st.integers(0, 4)) > 0:
        change: datetime = draw(st.sampled_from(changes))
        return ZoneInfo(name), change + timedelta(minutes=minutes)
    at = draw(st.datetimes(datetime(1970, 1, 5), datetime(2037, 11, 1)))  # noqa: DTZ001 - UTC follows
    return ZoneInfo(name), at.replace(tzinfo=UTC)


def is_open(hours: Hours, zone: ZoneInfo, at: datetime) -> bool:
    now = at.astimezone(zone).time()
    if hours.opens < hours.closes:
        return hours.opens <= now < hours.closes
    return now >= hours.opens or now < hours.closes


def following(hours: Hours, zone: ZoneInfo, at: datetime) -> Iterator[Window]:
    while True:
        window = current_or_next(hours, zone, at)
        yield window
        at = window.closes


@given(moments(), intervals)
@settings(max_examples=150, deadline=None)
def test_m5_no_instant_of_a_window_is_outside_the_local_hours(
    moment: tuple[ZoneInfo, datetime], interval: tuple[time, time]
) -> None:
    zone, at = moment
    hours = Hours(*interval)
    window = current_or_next(hours, zone, at)
    assert window.opens < window.closes
    assert at < window.closes
    inside = window.opens
    while inside < window.closes:
        assert is_open(hours, zone, inside), inside
        inside += 7 * MINUTE
    assert is_open(hours, zone, window.closes - timedelta(seconds=1))


@given(moments(), intervals)
@settings(max_examples=100, deadline=None)
def test_m5_each_local_day_opens_at_most_once_and_windows_never_overlap(
    moment: tuple[ZoneInfo, datetime], interval: tuple[time, time]
) -> None:
    zone, at = moment
    hours = Hours(*interval)
    windows = [window for window, _ in zip(following(hours, zone, at), range(6), strict=False)]
    for earlier, later in pairwise(windows):
        assert earlier.closes <= later.opens
        # Only a day that the clock skips, as in Samoa in 2011, makes them touch.
        assert later.opens - earlier.opens >= timedelta(hours=20) - _longest_shift(zone, earlier)
        # Three days later at the latest: one of them can be skipped.
        assert later.opens - earlier.opens <= timedelta(days=3)


def _longest_shift(zone: ZoneInfo, window: Window) -> timedelta:
    around = [window.opens + timedelta(hours=hours) for hours in range(-30, 60)]
    offsets = [at.astimezone(zone).utcoffset() or timedelta() for at in around]
    return max(offsets) - min(offsets)


@given(moments(), intervals)
@settings(max_examples=100, deadline=None)
def test_m5_a_window_is_found_from_every_instant_before_its_closing(
    moment: tuple[ZoneInfo, datetime], interval: tuple[time, time]
) -> None:
    zone, at = moment
    hours = Hours(*interval)
    window = current_or_next(hours, zone, at)
    for instant in (window.opens, window.closes - timedelta(microseconds=1)):
        assert current_or_next(hours, zone, instant) == window
    assert current_or_next(hours, zone, window.closes) != window


@given(moments(), st.tuples(st.integers(4, 11), st.integers(13, 22)))
@settings(max_examples=100, deadline=None)
def test_m5_daytime_opens_on_the_minute_unless_the_clock_changes_then(
    moment: tuple[ZoneInfo, datetime], interval: tuple[int, int]
) -> None:
    zone, at = moment
    hours = Hours(time(interval[0]), time(interval[1]))
    window = current_or_next(hours, zone, at)
    if not _longest_shift(zone, window):
        assert window.opens.astimezone(zone).time() == hours.opens
        assert window.closes.astimezone(zone).time() == hours.closes
        assert window.closes - window.opens == (interval[1] - interval[0]) * HOUR


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "hours", "at", "expected"),
    [
        # An ordinary day: before, within and after the hours.
        ("Europe/Moscow", "09:00-21:00", "2026-11-20 03:00", "2026-11-20 06:00 / 2026-11-20 18:00"),
        ("Europe/Moscow", "09:00-21:00", "2026-11-20 09:00", "2026-11-20 06:00 / 2026-11-20 18:00"),
        ("Europe/Moscow", "09:00-21:00", "2026-11-20 18:00", "2026-11-21 06:00 / 2026-11-21 18:00"),
        # Over midnight: the window of the day before is still open.
        ("Asia/Tokyo", "20:00-02:00", "2026-11-20 16:00", "2026-11-20 11:00 / 2026-11-20 17:00"),
        # 02:00 to 03:00 is skipped: opens at the skip, closes at the skip, or not on this day.
        ("Europe/Berlin", "02:30-09:00", "2026-03-29 00:00", "2026-03-29 01:00 / 2026-03-29 07:00"),
        ("Europe/Berlin", "00:30-02:30", "2026-03-29 00:00", "2026-03-28 23:30 / 2026-03-29 01:00"),
        ("Europe/Berlin", "02:10-02:50", "2026-03-29 00:00", "2026-03-30 00:10 / 2026-03-30 00:50"),
        # 02:00 to 03:00 occurs twice: opens at the second 02:30, closes at the first.
        ("Europe/Berlin", "02:30-09:00", "2026-10-25 00:00", "2026-10-25 01:30 / 2026-10-25 08:00"),
        ("Europe/Berlin", "00:30-02:30", "2026-10-25 00:00", "2026-10-24 22:30 / 2026-10-25 00:30"),
        # Both within the repeated hour: only the first time.
        ("Europe/Berlin", "02:10-02:50", "2026-10-25 00:00", "2026-10-25 00:10 / 2026-10-25 00:50"),
        ("Europe/Berlin", "02:10-02:50", "2026-10-25 00:50", "2026-10-26 01:10 / 2026-10-26 01:50"),
        # Samoa had no 30 December 2011.
        ("Pacific/Apia", "09:00-21:00", "2011-12-30 08:00", "2011-12-30 19:00 / 2011-12-31 07:00"),
    ],
)  # fmt: skip
def test_m5_windows_on_ordinary_days_and_when_the_clock_changes(
    zone: str, hours: str, at: str, expected: str
) -> None:
    interval = Hours(*(time.fromisoformat(text) for text in hours.split("-")))
    window = current_or_next(interval, ZoneInfo(zone), utc(at))
    assert window == tuple(map(utc, expected.split(" / ")))
