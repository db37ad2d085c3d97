"""From figures by minute to charts. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from services.console.charts import Chart, Series, line_chart, stacked_bars
from services.console.formatting import duration, parse_time

Spans = Sequence[tuple[str, str]]

# The spans that pages offer, in minutes: of all targets, and of one.
SPANS: Final[Spans] = (
    ("15", "The last 15 minutes"),
    ("60", "The last hour"),
    ("180", "The last 3 hours"),
)
TARGET_SPANS: Final[Spans] = (
    ("60", "The last hour"),
    ("360", "The last 6 hours"),
    ("1440", "The last day"),
)
DEFAULT_SPAN: Final = 60
# Bars of a chart.
_BARS: Final = 60


def span_of(text: str | None, spans: Spans = SPANS) -> int:
    """Return the minutes of a span in the URL; the default if it is not one of these."""
    return int(text) if text is not None and text in dict(spans) else DEFAULT_SPAN


def attempt_charts(
    minutes: Sequence[Mapping[str, Any]], until: datetime | str, span: int, zone: ZoneInfo
) -> tuple[Chart, Chart]:
    """Return the charts of the attempts and of their durations, up to a time.

    A bar has as many minutes as needed for 60 bars. Its durations are those of its slowest minute.
    """
    size = max(span // _BARS, 1)
    last = parse_time(until).replace(second=0, microsecond=0)
    first = last - timedelta(minutes=span - 1)
    bars: list[list[Mapping[str, Any]]] = [[] for _ in range(span // size)]
    for minute in minutes:
        index = (parse_time(minute["at"]) - first) // timedelta(minutes=size)
        if 0 <= index < len(bars):
            bars[index].append(minute)
    labels = [
        (first + timedelta(minutes=size * index)).astimezone(zone).strftime("%H:%M")
        for index in range(len(bars))
    ]
    unit = "minute" if size == 1 else f"{size} minutes"
    attempts = stacked_bars(
        f"Attempts per {unit}",
        labels,
        [
            Series("Delivered", [_total(bar, "delivered") for bar in bars], "good"),
            Series("Failed", [_total(bar, "failed") for bar in bars], "bad"),
        ],
    )
    durations = line_chart(
        "Duration of attempts",
        labels,
        [
            Series("Median", [_highest(bar, "p50") for bar in bars]),
            Series("99th percentile", [_highest(bar, "p99") for bar in bars]),
        ],
        text=duration,
    )
    return attempts, durations


def _total(bar: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(minute[name] for minute in bar)


def _highest(bar: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return max((minute[name] for minute in bar if minute[name] is not None), default=None)
