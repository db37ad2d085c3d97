"""Draws the course of a simulation as one SVG with a chart for each question."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from markupsafe import Markup

from services.console.charts import HEIGHT, WIDTH, Chart, Series, line_chart
from services.simulator.figures import ATTEMPTS, DEAD, DELIVERED, MESSAGES, Course, Result

# The space above a chart for its title and its legend.
_HEAD: Final = 48
_PANEL: Final = _HEAD + HEIGHT + 12
# The charts of the console get their colours from its style sheet. A file needs its own.
_COLOURS: Final = {
    "series-1": "#3949ab",
    "series-2": "#00796b",
    "series-3": "#b26a00",
    "series-4": "#8e24aa",
    "series-5": "#c2185b",
    "series-6": "#546e7a",
    "series-good": "#2c8c5a",
    "series-bad": "#cf4040",
    "series-odd": "#b57a16",
    "series-info": "#3d7cc9",
}
_STYLE: Final = (
    "svg{font:12px system-ui,sans-serif;fill:#3b4048}.title{font-size:14px;font-weight:600}"
    ".grid{stroke:#e3e6ea}.axis{stroke:#8d939c}.line{fill:none;stroke-width:1.75}"
    + "".join(
        f".line.{name},.dot.{name}{{stroke:{colour}}}.key.{name},.dot.{name}{{fill:{colour}}}"
        for name, colour in _COLOURS.items()
    )
)


def draw(result: Result) -> str:
    """Return the text of an SVG file."""
    charts = [*_charts(result.course)]
    height = _PANEL * len(charts)
    panels = (_panel(chart, index * _PANEL) for index, chart in enumerate(charts))
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" height="{}">'
            '<style>{}</style><rect width="100%" height="100%" fill="#fff"/>{}</svg>\n'
        ).format(WIDTH, height, WIDTH * 1.5, height * 1.5, Markup(_STYLE), Markup("").join(panels))  # noqa: S704 - a constant
    )


def _charts(course: Course) -> Iterator[Chart]:
    labels = [_clock(index * course.width) for index in range(course.points)]
    attempts, delivered, dead, messages = (
        course.counts[name][: course.points] for name in (ATTEMPTS, DELIVERED, DEAD, MESSAGES)
    )
    width = course.width
    yield line_chart(
        "Attempts and deliveries a second",
        labels,
        [
            Series("attempts", [value / width for value in attempts], "info"),
            Series("delivered", [value / width for value in delivered], "good"),
        ],
    )
    yield line_chart(
        "Messages that the broker stores a second",
        labels,
        [Series("messages", [value / width for value in messages], "odd")],
    )
    waiting = [
        Series(tier, depths[: course.points])
        for tier, depths in course.depths.items()
        if any(depths)
    ]
    if waiting:
        yield line_chart("Waiting callbacks", labels, waiting)
    if any(dead):
        total = list(accumulate(dead))
        yield line_chart("Dead letters so far", labels, [Series("dead", total, "bad")])


def _clock(seconds: float) -> str:
    """Return a time since the start, such as 2:14:24, short enough for the axis."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _panel(chart: Chart, top: int) -> Markup:
    return Markup(
        '<text class="title" x="12" y="{}">{}</text>{}<svg y="{}" width="{}" height="{}">{}</svg>'
    ).format(top + 20, chart.title, _legend(chart, top + 38), top + _HEAD, WIDTH, HEIGHT, chart.svg)


def _legend(chart: Chart, y: int) -> Markup:
    keys: Sequence[Markup] = [
        Markup(
            '<rect class="key {}" x="{}" y="{}" width="10" height="10" rx="2"/>'
            '<text x="{}" y="{}">{}</text>'
        ).format(entry.kind, 60 + index * 76, y - 9, 74 + index * 76, y, entry.name)
        for index, entry in enumerate(chart.legend)
    ]
    return Markup("").join(keys)
