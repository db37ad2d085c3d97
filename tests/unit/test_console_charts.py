"""Charts of the console: valid SVG without inline styles, and the same numbers as a table."""

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.console.charts import (
    HEIGHT,
    WIDTH,
    Chart,
    Series,
    histogram,
    line_chart,
    nice_ticks,
    stacked_bars,
)
from services.console.formatting import DASH, duration

LABELS = ["10:00", "10:01", "10:02"]
HOSTILE = "<script>alert(1)</script>\"'&"


def drawn(chart: Chart) -> ET.Element:
    """Return the drawing as XML, after checking what every drawing must fulfil."""
    assert "style=" not in chart.svg
    assert "<script" not in chart.svg
    root = ET.fromstring(chart.svg)  # noqa: S314 - our own
    assert root.get("role") == "img"
    assert root.get("aria-label")
    return root


def test_lines_and_their_table() -> None:
    chart = line_chart(
        "Rate",
        LABELS,
        [Series("delivered", [1, 2, 3], "good"), Series("failed", [0, None, 1], "bad")],
    )
    root = drawn(chart)
    lines = [each.get("d") for each in root.iter("path") if "line" in each.get("class", "")]
    assert len(lines) == 2
    assert lines[1] is not None
    assert lines[1].count("M") == 2  # a gap
    assert chart.headings == ["Time", "#delivered", "#failed"]
    assert chart.rows == [["10:00", "1", "0"], ["10:01", "2", DASH], ["10:02", "3", "1"]]
    assert [entry.kind for entry in chart.legend] == ["series-good", "series-bad"]
    assert root.get("aria-label") == (
        "Rate. 10:00 to 10:02. delivered from 1 to 3, failed from 0 to 1."
    )


def test_stacked_bars_touch_and_stay_in_the_drawing() -> None:
    series = [Series("sent", [2, 0, 1]), Series("failed", [1, 0, 3])]
    root = drawn(stacked_bars("Messages", LABELS, series))
    bars = list(root.iter("rect"))
    assert len(bars) == 4  # nothing is drawn for 0
    first, third = bars[0], bars[2]
    assert float(third.get("y", 0)) + float(third.get("height", 0)) == pytest.approx(
        float(first.get("y", 0)), abs=0.2
    )
    for bar in bars:
        x, y = float(bar.get("x", -1)), float(bar.get("y", -1))
        assert 0 <= x <= x + float(bar.get("width", -1)) <= WIDTH
        assert 0 <= y <= y + float(bar.get("height", -1)) <= HEIGHT


def test_a_histogram_has_a_row_for_each_bound() -> None:
    chart = histogram("Latency", ["10 ms", "100 ms", "1 s"], [5, 0, 2])
    drawn(chart)
    assert chart.rows == [["10 ms", "5"], ["100 ms", "0"], ["1 s", "2"]]
    assert chart.legend == ()


@pytest.mark.parametrize("make", [line_chart, stacked_bars])
def test_an_empty_chart_is_valid(make: object) -> None:
    chart = make("Nothing", [], [Series("none", [])])  # type: ignore[operator]
    assert "No values" in drawn(chart).get("aria-label", "")


def test_names_and_labels_of_others_are_escaped() -> None:
    chart = stacked_bars(HOSTILE, [HOSTILE], [Series(HOSTILE, [1])])
    root = drawn(chart)
    assert HOSTILE in "".join(root.itertext())
    assert not list(root.iter("script"))


def test_values_are_formatted() -> None:
    chart = line_chart("p99", ["now"], [Series("p99", [0.25])], text=duration)
    assert chart.rows == [["now", "250 ms"]]
    assert "p99 250 ms</title>" in chart.svg
    assert ">200 ms<" in chart.svg


def test_each_series_needs_a_value_for_each_label() -> None:
    with pytest.raises(ValueError, match="each series"):
        line_chart("Wrong", LABELS, [Series("short", [1])])


def test_labels_of_the_axis_are_thinned() -> None:
    labels = [f"{minute:02d}" for minute in range(60)]
    root = drawn(line_chart("Hour", labels, [Series("n", list(range(60)))]))
    shown = [each.text for each in root.iter("text") if each.text in labels]
    assert 5 <= len(set(shown)) <= 12
    assert not re.search(r"<circle", line_chart("Hour", labels, [Series("n", [1] * 60)]).svg)


@given(st.floats(min_value=0, max_value=1e15, allow_subnormal=False))
def test_ticks_are_few_start_at_zero_and_cover_the_highest_value(highest: float) -> None:
    ticks = nice_ticks(highest)
    assert ticks[0] == 0
    assert ticks[-1] >= highest * 0.998
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
