"""When a recurring event is due: laws for any rhythm, and the days on which the clock changes."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.recurrence import Rhythm, first, following

MOMENTS = st.timedeltas(timedelta(0), timedelta(days=5000)).map(
    lambda after: datetime(2020, 1, 1, tzinfo=UTC) + after
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
CRONS = st.sampled_from(
    ["* * * * *", "*/15 * * * *", "30 2 * * *", "0 0 * * *", "15 1-3 * * 0", "0 12 1 * *"]
)
RHYTHMS = st.one_of(
    st.builds(Rhythm, every=st.floats(1, 1e6)), st.builds(Rhythm, cron=CRONS, timezone=ZONES)
)


@given(RHYTHMS, MOMENTS, st.timedeltas(timedelta(0), timedelta(days=400)))
def test_the_next_is_after_the_last_and_after_now(
    rhythm: Rhythm, last: datetime, late: timedelta
) -> None:
    due = following(rhythm, last, 1, last + late)
    assert due is not None
    assert due > last
    assert due > last + late


@given(st.floats(1, 1e5), MOMENTS, st.timedeltas(timedelta(0), timedelta(days=40)))
def test_an_interval_keeps_its_grid_and_leaves_out_what_was_missed(
    every: float, last: datetime, late: timedelta
) -> None:
    due = following(Rhythm(every=every), last, 1, last + late)
    assert due is not None
    steps = (due - last) / timedelta(seconds=every)
    assert abs(steps - round(steps)) < 1e-3
    assert due - (last + late) <= timedelta(seconds=every) + timedelta(microseconds=1)


@given(st.integers(1, 20), MOMENTS)
def test_a_count_is_kept(count: int, start: datetime) -> None:
    rhythm = Rhythm(every=60, count=count)
    due, occurrence = first(rhythm, start), 0
    while due is not None:
        occurrence += 1
        due = following(rhythm, due, occurrence, due)
    assert occurrence == count


def test_none_is_due_after_until() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rhythm = Rhythm(every=60, until=start + timedelta(seconds=120))
    assert following(rhythm, start, 1, start) == start + timedelta(seconds=60)
    assert following(rhythm, start + timedelta(seconds=120), 3, start) is None
    assert first(rhythm, start + timedelta(seconds=121)) is None


def test_a_cron_expression_begins_at_its_first_match() -> None:
    rhythm = Rhythm(cron="0 9 * * *", timezone="Europe/Berlin")
    nine = datetime(2026, 7, 1, 9, tzinfo=ZoneInfo("Europe/Berlin"))
    assert first(rhythm, nine) == nine
    assert first(rhythm, nine + timedelta(seconds=1)) == nine + timedelta(days=1)


def local_days(cron: str, zone: str, start: datetime, count: int) -> list[datetime]:
    rhythm = Rhythm(cron=cron, timezone=zone)
    found = [first(rhythm, start)]
    while len(found) < count:
        last = found[-1]
        assert last is not None
        found.append(following(rhythm, last, len(found), last))
    return [each.astimezone(ZoneInfo(zone)) for each in found if each is not None]


# Row 24.
@pytest.mark.parametrize(
    ("zone", "cron", "gap"),
    [
        ("Europe/Berlin", "30 2 * * *", datetime(2026, 3, 29, tzinfo=UTC)),
        ("America/New_York", "30 2 * * *", datetime(2026, 3, 8, tzinfo=UTC)),
    ],
)
def test_row_24_a_time_that_the_clock_leaves_out_is_due_once_that_day(
    zone: str, cron: str, gap: datetime
) -> None:
    due = local_days(cron, zone, gap - timedelta(days=2), 6)
    assert [(each.date() - due[0].date()).days for each in due] == [0, 1, 2, 3, 4, 5]
    assert {each.hour for each in due} == {2, 3}  # 3 on the day without a half past two


@pytest.mark.parametrize(
    ("zone", "overlap"),
    [
        ("Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 11, 1, 5, tzinfo=UTC)),
    ],
)
def test_row_24_a_time_that_the_clock_repeats_is_due_once(zone: str, overlap: datetime) -> None:
    hour = 2 if zone == "Europe/Berlin" else 1
    due = local_days(f"30 {hour} * * *", zone, overlap - timedelta(days=2), 6)
    days = [each.date() for each in due]
    assert len(set(days)) == len(days)
    assert all(b - a == timedelta(days=1) for a, b in pairwise(days))


def test_row_24_what_is_due_every_half_hour_goes_on_through_both() -> None:
    for start in (datetime(2026, 3, 28, 22, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC)):
        due = local_days("*/30 * * * *", "Europe/Berlin", start, 12)
        utc = [each.astimezone(UTC) for each in due]
        assert all(b - a == timedelta(minutes=30) for a, b in pairwise(utc))
