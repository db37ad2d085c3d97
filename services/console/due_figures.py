"""From counts of due callbacks to a chart by hour and one by day. Pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from services.console.charts import Chart, Series, stacked_bars
from services.console.formatting import count, parse_time

HOURS: Final = 24
DAYS: Final = 31
# The bound before every due time, so the first span has the overdue callbacks.
BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


def hour_bounds(now: datetime, zone: ZoneInfo) -> Sequence[datetime]:
    """Return the bounds of the next hours of the zone's clock; the first one begins now."""
    hour = now.astimezone(zone).replace(minute=0, second=0, microsecond=0).astimezone(UTC)
    return [now, *(hour + timedelta(hours=number) for number in range(1, HOURS + 1))]


def day_bounds(now: datetime, zone: ZoneInfo) -> Sequence[datetime]:
    """Return the bounds of the next days in a zone; the first one begins now."""
    today = now.astimezone(zone).date()
    midnights = (
        datetime.combine(today + timedelta(days=number), time(), zone).astimezone(UTC)
        for number in range(1, DAYS + 1)
    )
    return [now, *midnights]


def total(counts: Sequence[Mapping[str, Any]]) -> str:
    """Return how many callbacks these are, for a tile."""
    number = sum(each["callbacks"] for each in counts)
    return f"about {count(number)}" if any(each["estimated"] for each in counts) else count(number)


def due_chart(
    title: str, counts: Sequence[Mapping[str, Any]], pattern: str, zone: ZoneInfo
) -> Chart:
    """Return the chart of callbacks by the beginning of their spans, written by a pattern."""
    labels = [parse_time(each["since"]).astimezone(zone).strftime(pattern) for each in counts]
    values = [each["callbacks"] for each in counts]
    return stacked_bars(title, labels, [Series("Callbacks", values, "info")])
