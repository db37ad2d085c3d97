"""The schedule page of the console: its spans in the viewer's zone, and its numbers."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from services.console.due_figures import (
    DAYS,
    HOURS,
    day_bounds,
    due_chart,
    hour_bounds,
    total,
)

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Havana"]
).map(ZoneInfo)
TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(now=TIMES, zone=ZONES)
def test_s7_spans_follow_each_other_from_now_on(now: datetime, zone: ZoneInfo) -> None:
    for bounds, count in ((hour_bounds(now, zone), HOURS), (day_bounds(now, zone), DAYS)):
        assert bounds[0] == now
        assert len(bounds) == count + 1
        assert all(since < until for since, until in pairwise(bounds))


def test_s7_days_begin_at_midnight_of_the_viewer_also_when_clocks_change() -> None:
    now = datetime(2026, 3, 28, 12, 34, tzinfo=UTC)
    _, sunday, monday, *_ = day_bounds(now, BERLIN)
    assert (sunday, monday - sunday) == (datetime(2026, 3, 28, 23, tzinfo=UTC), timedelta(hours=23))
    first, second, *_ = hour_bounds(now, BERLIN)[1:]
    assert (first, second - first) == (datetime(2026, 3, 28, 13, tzinfo=UTC), timedelta(hours=1))


def test_s7_a_chart_has_a_bar_for_each_span_and_estimates_are_marked() -> None:
    counts = [
        {"since": "2026-03-28T12:34:00Z", "callbacks": 7, "estimated": False},
        {"since": "2026-03-28T13:00:00Z", "callbacks": 41000, "estimated": True},
    ]
    chart = due_chart("Due by hour", counts, "%H:00", BERLIN)
    assert [row[0] for row in chart.rows] == ["13:00", "14:00"]
    assert chart.rows[0][1] == "7"
    assert total(counts[:1]) == "7"
    assert total(counts).startswith("about 41")
