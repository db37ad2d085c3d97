"""Due times of recurring callbacks: properties for any recurrence, and days with a clock change."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.recurrence import Recurrence, first_due, next_due, next_occurrences

TIMES = st.timedeltas(timedelta(0), timedelta(days=5000)).map(
    lambda after: datetime(2020, 1, 1, tzinfo=UTC) + after
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
CRONS = st.sampled_from(
    ["* * * * *", "*/15 * * * *", "30 2 * * *", "0 0 * * *", "15 1-3 * * 0", "0 12 1 * *"]
)
RECURRENCES = st.one_of(
    st.builds(Recurrence, every=st.floats(1, 1e6)),
    st.builds(Recurrence, cron=CRONS, timezone=ZONES),
)
HOURS = st.integers(0, 23)
MINUTES = st.integers(0, 59)


@cache
def clock_changes(zone: str) -> list[datetime]:
    """Return the times from 2005 to 2037 at which the clocks of a zone change, in UTC."""
    found = []
    step, tz = timedelta(days=14), ZoneInfo(zone)
    start = datetime(2005, 1, 1, tzinfo=UTC)
    while start.year < 2038:
        before, after = start, start + step
        offset = before.astimezone(tz).utcoffset()
        if after.astimezone(tz).utcoffset() != offset:
            while after - before > timedelta(seconds=1):
                middle = before + (after - before) // 2
                if middle.astimezone(tz).utcoffset() == offset:
                    before = middle
                else:
                    after = middle
            found.append(after.replace(microsecond=0))
        start += step
    return found


# A zone with a time around one of its clock changes.
CLOCK_CHANGES = (
    st.sampled_from(sorted(available_timezones()))
    .filter(clock_changes)
    .flatmap(
        lambda zone: st.tuples(
            st.just(zone),
            st.sampled_from(clock_changes(zone)),
            st.timedeltas(timedelta(hours=-4), timedelta(hours=4)),
        )
    )
)
# Minutes and hours that are fixed, so each local time is due once.
FIXED = st.builds(
    lambda minutes, hours: f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *",
    st.lists(MINUTES, min_size=1, max_size=4),
    st.lists(st.integers(0, 4) | HOURS, min_size=1, max_size=4),
)


@settings(max_examples=300)
@given(CLOCK_CHANGES, FIXED | CRONS, st.timedeltas(timedelta(0), timedelta(hours=3)))
def test_finding_a2_no_occurrence_is_in_the_past_at_any_clock_change(
    change: tuple[str, datetime, timedelta], cron: str, delay: timedelta
) -> None:
    zone, at, offset = change
    recurrence = Recurrence(cron=cron, timezone=zone)
    last = at + offset
    first, due = first_due(recurrence, last), next_due(recurrence, last, 1, last + delay)
    assert first is not None
    assert first >= last
    assert due is not None
    assert due > last + delay


@settings(max_examples=100)
@given(CLOCK_CHANGES, FIXED)
def test_finding_a2_a_fixed_local_time_is_due_once_at_any_clock_change(
    change: tuple[str, datetime, timedelta], cron: str
) -> None:
    zone, at, offset = change
    recurrence = Recurrence(cron=cron, timezone=zone)
    end = at + timedelta(days=2)
    due, found = first_due(recurrence, at + offset - timedelta(days=2)), []
    while due is not None and due < end:
        found.append(due)
        # The next occurrence is planned when this one has ended.
        due = next_due(recurrence, due, len(found), due + timedelta(seconds=20))
    local_times = Counter(each.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for each in found)
    assert all(times == 1 for times in local_times.values())


def test_finding_a2_a_cron_expression_does_not_fire_again_in_a_repeated_hour() -> None:
    berlin = Recurrence(cron="30 2 * * *", timezone="Europe/Berlin")
    last, now = datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 10, tzinfo=UTC)
    assert next_due(berlin, last, 1, now) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)
    new_york = Recurrence(cron="30 1 * * *", timezone="America/New_York")
    second_pass = datetime(2026, 11, 1, 6, 10, tzinfo=UTC)
    assert first_due(new_york, second_pass) == datetime(2026, 11, 2, 6, 30, tzinfo=UTC)


@given(RECURRENCES, TIMES, st.timedeltas(timedelta(0), timedelta(days=400)))
def test_the_next_due_time_is_after_the_last_one_and_after_now(
    recurrence: Recurrence, last: datetime, delay: timedelta
) -> None:
    due = next_due(recurrence, last, 1, last + delay)
    assert due is not None
    assert due > last
    assert due > last + delay


@given(st.floats(1, 1e5), TIMES, st.timedeltas(timedelta(0), timedelta(days=40)))
def test_an_interval_stays_aligned_and_skips_missed_occurrences(
    every: float, last: datetime, delay: timedelta
) -> None:
    due = next_due(Recurrence(every=every), last, 1, last + delay)
    assert due is not None
    steps = (due - last) / timedelta(seconds=every)
    assert abs(steps - round(steps)) < 1e-3
    assert due - (last + delay) <= timedelta(seconds=every) + timedelta(microseconds=1)


@given(st.integers(1, 20), TIMES)
def test_count_limits_the_occurrences(count: int, start: datetime) -> None:
    recurrence = Recurrence(every=60, count=count)
    due, occurrence = first_due(recurrence, start), 0
    while due is not None:
        occurrence += 1
        due = next_due(recurrence, due, occurrence, due)
    assert occurrence == count


def test_no_occurrence_is_due_after_until() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    recurrence = Recurrence(every=60, until=start + timedelta(seconds=120))
    assert next_due(recurrence, start, 1, start) == start + timedelta(seconds=60)
    assert next_due(recurrence, start + timedelta(seconds=120), 3, start) is None
    assert first_due(recurrence, start + timedelta(seconds=121)) is None


def test_a_cron_expression_begins_at_its_first_match() -> None:
    recurrence = Recurrence(cron="0 9 * * *", timezone="Europe/Berlin")
    nine_o_clock = datetime(2026, 7, 1, 9, tzinfo=ZoneInfo("Europe/Berlin"))
    assert first_due(recurrence, nine_o_clock) == nine_o_clock
    assert first_due(recurrence, nine_o_clock + timedelta(seconds=1)) == nine_o_clock + timedelta(
        days=1
    )


def local_due_times(cron: str, zone: str, start: datetime, count: int) -> list[datetime]:
    recurrence = Recurrence(cron=cron, timezone=zone)
    found = [first_due(recurrence, start)]
    while len(found) < count:
        last = found[-1]
        assert last is not None
        found.append(next_due(recurrence, last, len(found), last))
    return [each.astimezone(ZoneInfo(zone)) for each in found if each is not None]


@pytest.mark.parametrize(
    ("zone", "cron", "gap"),
    [
        ("Europe/Berlin", "30 2 * * *", datetime(2026, 3, 29, tzinfo=UTC)),
        ("America/New_York", "30 2 * * *", datetime(2026, 3, 8, tzinfo=UTC)),
    ],
)
def test_row_24_a_local_time_that_the_clock_skips_is_due_once_that_day(
    zone: str, cron: str, gap: datetime
) -> None:
    due = local_due_times(cron, zone, gap - timedelta(days=2), 6)
    assert [(each.date() - due[0].date()).days for each in due] == [0, 1, 2, 3, 4, 5]
    assert {each.hour for each in due} == {2, 3}  # 3 on the day that has no 2:30


@pytest.mark.parametrize(
    ("zone", "overlap"),
    [
        ("Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 11, 1, 5, tzinfo=UTC)),
    ],
)
def test_row_24_a_local_time_that_the_clock_repeats_is_due_once(
    zone: str, overlap: datetime
) -> None:
    hour = 2 if zone == "Europe/Berlin" else 1
    due = local_due_times(f"30 {hour} * * *", zone, overlap - timedelta(days=2), 6)
    days = [each.date() for each in due]
    assert len(set(days)) == len(days)
    assert all(b - a == timedelta(days=1) for a, b in pairwise(days))


def test_row_24_every_half_hour_continues_through_both_clock_changes() -> None:
    for start in (datetime(2026, 3, 28, 22, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC)):
        due = local_due_times("*/30 * * * *", "Europe/Berlin", start, 12)
        utc = [each.astimezone(UTC) for each in due]
        assert all(b - a == timedelta(minutes=30) for a, b in pairwise(utc))


@given(recurrence=RECURRENCES, start=TIMES, late=st.timedeltas(timedelta(0), timedelta(days=30)))
def test_s7_next_occurrences_are_those_that_follow_on_time(
    recurrence: Recurrence, start: datetime, late: timedelta
) -> None:
    now = start + late
    found = next_occurrences(recurrence, start, 1, now, 5)
    assert len(found) == 5
    for last, due in pairwise([start, *found]):
        assert due == next_due(recurrence, last, 1, max(last, now if last is start else last))


def test_s7_next_occurrences_end_with_the_recurrence() -> None:
    start = datetime(2026, 11, 20, tzinfo=UTC)
    hours = [start + timedelta(hours=n) for n in range(1, 4)]
    for ended in (
        Recurrence(every=3600, count=5),
        Recurrence(every=3600, until=hours[-1]),
        Recurrence(cron="0 * * * *", count=5),
    ):
        assert next_occurrences(ended, start, 2, start, 10) == hours
