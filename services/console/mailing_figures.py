"""Figures and charts of the messages of a mailing. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

from services.console.charts import Chart, Series, stacked_bars
from services.console.formatting import parse_time
from shared.contracts.posting_requests import MessageState

# The meaning of each status as a colour, in the order in which bars are stacked.
_KINDS: Final = {
    MessageState.SENT: "good",
    MessageState.CREATED: "info",
    MessageState.SKIPPED: "odd",
    MessageState.EXPIRED: "",
    MessageState.FAILED: "bad",
    MessageState.CANCELLED: "",
}
# What a message in this status is called on a page.
LABELS: Final = {
    **{state.value: state.value for state in MessageState},
    MessageState.CREATED.value: "waiting",
}
# Operator codes in the chart; the table on the page has all.
_MAX_CODES: Final = 30


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a mailing is. `total` is the number of clients, as far as it is known."""

    settled: int
    total: int


def progress_of(statistics: Mapping[str, Any], audience: int = 0) -> Progress:
    """Return the progress by the counted messages, and the clients who match at present."""
    total = statistics["total"]
    waiting = statistics["by_status"].get(MessageState.CREATED.value, 0)
    return Progress(total - waiting, max(total, audience))


def charts_of(statistics: Mapping[str, Any], zone: ZoneInfo) -> Sequence[Chart]:
    """Return the charts of a mailing by time, operator code and reason; empty ones are left out."""
    hours = statistics["by_hour"]
    codes = sorted(statistics["by_operator_code"], key=lambda each: each["total"], reverse=True)
    reasons = sorted(statistics["by_reason"].items(), key=lambda each: each[1], reverse=True)
    charts = []
    if hours:
        labels = _hours([parse_time(each["hour"]).astimezone(zone) for each in hours])
        charts.append(stacked_bars("Messages by hour", labels, _by_status(hours)))
    if codes:
        shown = codes[:_MAX_CODES]
        labels = [each["operator_code"] for each in shown]
        charts.append(
            stacked_bars(
                "Messages by operator code",
                labels,
                _by_status(shown),
                label_heading="Operator code",
            )
        )
    if reasons:
        series = Series("Messages", [number for _, number in reasons], "odd")
        labels = [name.replace("_", " ") for name, _ in reasons]
        charts.append(stacked_bars("Messages by reason", labels, [series], label_heading="Reason"))
    return charts


def _by_status(groups: Sequence[Mapping[str, Any]]) -> Sequence[Series]:
    """Return a series for each status that occurs."""
    return [
        Series(LABELS[state], values, kind)
        for state, kind in _KINDS.items()
        if any(values := [each["by_status"].get(state.value, 0) for each in groups])
    ]


def _hours(times: Sequence[Any]) -> Sequence[str]:
    """Return the labels of hours, with the day if they are of several days."""
    one_day = len({each.date() for each in times}) == 1
    return [each.strftime("%H:%M" if one_day else "%d %b %H:%M") for each in times]
