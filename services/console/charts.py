"""Charts as SVG, made on the server. Pure functions; each chart is also available as a table.

Colours are classes, because the policy of the pages forbids style attributes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from services.console.formatting import DASH, count

# The size of a drawing in its own units; style.css scales it to the page.
WIDTH: Final = 600
HEIGHT: Final = 210
# The space around the drawing, for the labels of the axes.
_LEFT: Final = 60
_RIGHT: Final = 12
_TOP: Final = 10
_BOTTOM: Final = 26
_INNER_WIDTH: Final = WIDTH - _LEFT - _RIGHT
_INNER_HEIGHT: Final = HEIGHT - _TOP - _BOTTOM
# Labels of the horizontal axis: as many as fit with a time of day.
_MAX_LABELS: Final = 8
_TICKS: Final = 4
# Points up to which each is drawn as a dot.
_MAX_DOTS: Final = 40
_PALETTE_SIZE: Final = 6

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one kind, one for each label.

    kind: the meaning of the colour: good, bad, odd or info. Empty: the next one of the palette.
    A value of None is a gap.
    """

    name: str
    values: Sequence[float | None]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """The name of a series, and the class of its colour."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, and the same as a table: the first column has the labels."""

    title: str
    svg: Markup
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: Sequence[LegendEntry] = ()


def line_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    label_heading: str = "Time",
    text: Format = count,
) -> Chart:
    """Return a chart with a line for each series."""
    _check(labels, series)
    scale = _scale(_values(series))
    step = _INNER_WIDTH / max(len(labels) - 1, 1)
    marks = []
    for kind, each in zip(_kinds(series), series, strict=True):
        points = [
            None if value is None else (_LEFT + index * step, _y(value, scale))
            for index, value in enumerate(each.values)
        ]
        marks.append(_line(points, kind))
        if len(labels) <= _MAX_DOTS:
            marks += [
                _dot(point, kind, _tip(label, each.name, text(value)))
                for label, point, value in zip(labels, points, each.values, strict=True)
                if point is not None and value is not None
            ]
    centres = [_LEFT + index * step for index in range(len(labels))]
    return _chart(title, labels, series, label_heading, text, scale, centres, marks)


def stacked_bars(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    label_heading: str = "Time",
    text: Format = count,
) -> Chart:
    """Return a chart with a bar for each label, in which the series are stacked."""
    _check(labels, series)
    totals = [sum(each.values[index] or 0 for each in series) for index in range(len(labels))]
    scale = _scale(totals)
    step = _INNER_WIDTH / max(len(labels), 1)
    gap = min(step * 0.2, 6)
    marks = []
    base = [0.0] * len(labels)
    for kind, each in zip(_kinds(series), series, strict=True):
        for index, (label, value) in enumerate(zip(labels, each.values, strict=True)):
            if not value:
                continue
            top, bottom = _y(base[index] + value, scale), _y(base[index], scale)
            base[index] += value
            x = _LEFT + index * step + gap / 2
            tip = _tip(label, each.name, text(value))
            marks.append(_rectangle(x, top, step - gap, bottom - top, kind, tip))
    centres = [_LEFT + (index + 0.5) * step for index in range(len(labels))]
    return _chart(title, labels, series, label_heading, text, scale, centres, marks)


def histogram(  # noqa: PLR0913 - the parts of a chart
    title: str,
    bounds: Sequence[str],
    counts: Sequence[int],
    *,
    label_heading: str = "Up to",
    value_heading: str = "Number",
    kind: str = "",
) -> Chart:
    """Return a chart with the number of values up to each bound (and above the previous one)."""
    series = Series(value_heading, counts, kind)
    chart = stacked_bars(title, bounds, [series], label_heading=label_heading)
    return Chart(chart.title, chart.svg, chart.headings, chart.rows)


def nice_ticks(highest: float) -> list[float]:
    """Return evenly spaced round numbers from 0 to at least `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(
        factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999
    )
    # A count has no halves.
    if highest >= 1 and step < 1 and float(highest).is_integer() and highest <= _TICKS:
        step = 1.0
    return [index * step for index in range(math.ceil(highest / step * 0.999) + 1)]


def _chart(  # noqa: PLR0913, PLR0917 - the parts of a chart
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    label_heading: str,
    text: Format,
    scale: Sequence[float],
    centres: Sequence[float],
    marks: Sequence[Markup],
) -> Chart:
    parts = [*_axes(labels, centres, scale, text), *marks]
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, _summary(title, labels, series, text), Markup("").join(parts)
    )
    rows = [
        [label, *(DASH if value is None else text(value) for value in values)]
        for label, *values in zip(labels, *(each.values for each in series), strict=True)
    ]
    entries = [
        LegendEntry(each.name, kind) for kind, each in zip(_kinds(series), series, strict=True)
    ]
    return Chart(
        title,
        svg,
        [label_heading, *(f"#{each.name}" for each in series)],
        rows,
        entries if len(entries) > 1 else (),
    )


def _check(labels: Sequence[str], series: Sequence[Series]) -> None:
    if any(len(each.values) != len(labels) for each in series):
        raise ValueError("each series needs a value for each label")


def _summary(title: str, labels: Sequence[str], series: Sequence[Series], text: Format) -> str:
    """Return what a screen reader says in place of the drawing."""
    parts = []
    for each in series:
        known = [value for value in each.values if value is not None]
        if known:
            parts.append(f"{each.name} from {text(min(known))} to {text(max(known))}")
    span = f" {labels[0]} to {labels[-1]}." if labels else ""
    return f"{title}.{span} {', '.join(parts) or 'No values'}."


def _axes(
    labels: Sequence[str], centres: Sequence[float], scale: Sequence[float], text: Format
) -> list[Markup]:
    parts = []
    for tick in scale:
        y = _y(tick, scale)
        css = "grid" if tick else "axis"
        parts.append(
            Markup('<path class="{}" d="M{} {}H{}"/>').format(
                css, _LEFT, _number(y), WIDTH - _RIGHT
            )
        )
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
                _LEFT - 8, _number(y + 4), text(tick)
            )
        )
    every = max(math.ceil(len(labels) / _MAX_LABELS), 1)
    for index in range(0, len(labels), every):
        x = centres[index]
        anchor = "start" if x < _LEFT + 20 else "end" if x > WIDTH - _RIGHT - 20 else "middle"
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
                _number(x), HEIGHT - 8, anchor, labels[index]
            )
        )
    return parts


def _line(points: Sequence[tuple[float, float] | None], kind: str) -> Markup:
    commands = []
    pen = "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        commands.append(f"{pen}{_number(point[0])} {_number(point[1])}")
        pen = "L"
    return Markup('<path class="line {}" d="{}"/>').format(kind, "".join(commands))


def _dot(point: tuple[float, float], kind: str, tip: str) -> Markup:
    return Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"><title>{}</title></circle>').format(
        kind, _number(point[0]), _number(point[1]), tip
    )


def _rectangle(  # noqa: PLR0913, PLR0917 - the parts of a rectangle
    x: float, y: float, width: float, height: float, kind: str, tip: str
) -> Markup:
    return Markup(
        '<rect class="bar-part {}" x="{}" y="{}" width="{}" height="{}" rx="1.5">'
        "<title>{}</title></rect>"
    ).format(kind, _number(x), _number(y), _number(width), _number(max(height, 0.5)), tip)


def _tip(label: str, name: str, value: str) -> str:
    return f"{label}: {name} {value}"


def _kinds(series: Sequence[Series]) -> list[str]:
    """Return the class of the colour of each series."""
    kinds = []
    following = 0
    for each in series:
        if each.kind:
            kinds.append(f"series-{each.kind}")
        else:
            kinds.append(f"series-{following % _PALETTE_SIZE + 1}")
            following += 1
    return kinds


def _values(series: Sequence[Series]) -> list[float]:
    return [value for each in series for value in each.values if value is not None]


def _scale(values: Sequence[float]) -> list[float]:
    return nice_ticks(max(values, default=0))


def _y(value: float, scale: Sequence[float]) -> float:
    return _TOP + _INNER_HEIGHT * (1 - value / scale[-1])


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
