"""Renders a daily report as text, and as HTML that mail clients display."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Final, NamedTuple

from jinja2 import Environment, StrictUndefined

from services.mailings.rendering.formats import Rendered
from services.mailings.rendering.frame import Frame
from services.mailings.reports.domain import Counts, DayReport
from shared.contracts.posting_requests import MessageState

# Length of the longest bar in the text, in characters.
_WIDTH: Final = 40

_TEMPLATE: Final = Environment(
    undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
).from_string(resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8"))


class _Series(NamedTuple):
    """A part of each bar: its label, its colour, and the statuses that it counts."""

    label: str
    colour: str
    states: tuple[MessageState, ...]


_SERIES: Final = (
    _Series("sent", "#2f9e62", (MessageState.SENT,)),
    _Series("waiting", "#9aa3b2", (MessageState.CREATED,)),
    _Series("failed or expired", "#d64545", (MessageState.FAILED, MessageState.EXPIRED)),
    _Series("skipped or cancelled", "#e0a03a", (MessageState.SKIPPED, MessageState.CANCELLED)),
)


class _Bar(NamedTuple):
    """A bar of the chart: its length and the share of each part, in per cent."""

    label: str
    total: int
    length: int
    parts: Sequence[tuple[str, int]]  # colour, per cent of the bar


def render(report: DayReport, frame: Frame, *, product: str) -> Rendered:
    """Return the e-mail with a report."""
    day = f"{report.day:%A}, {report.day.day} {report.day:%B %Y}"
    subject = f"Mailings on {day}"
    by_status = report.by_status
    summary = _summary(report, sum(by_status.values()))
    bars = list(_bars(report.hours))
    content = _TEMPLATE.render(
        subject=subject,
        summary=summary,
        zone=report.zone.key,
        by_status=_shown(by_status),
        series=_SERIES,
        bars=bars,
        report=report,
        sent=MessageState.SENT,
    )
    text = "\n".join(_text(report, f"{subject} ({report.zone.key})", summary, bars)) + "\n"
    html = frame.render(
        content, subject=subject, opening=summary, product=product, unsubscribe="", language="en"
    )
    return Rendered(subject, text, html)


def _summary(report: DayReport, total: int) -> str:
    if not total:
        return "No messages were created."
    messages = "1 message" if total == 1 else f"{total:,} messages"
    mailings = "1 mailing" if report.mailing_count == 1 else f"{report.mailing_count:,} mailings"
    return f"{messages} of {mailings}"


def _shown(counts: Counts) -> dict[str, int]:
    """Return the counts that are not 0, by the name of the status."""
    return {state.value: counts[state] for state in MessageState if counts.get(state)}


def _bars(hours: Sequence[tuple[str, Counts]]) -> Iterator[_Bar]:
    longest = max((sum(counts.values()) for _, counts in hours), default=0)
    for label, counts in hours:
        total = sum(counts.values())
        parts = [
            (each.colour, sum(counts.get(state, 0) for state in each.states)) for each in _SERIES
        ]
        yield _Bar(
            label,
            total,
            _per_cent(total, longest),
            [(colour, _per_cent(count, total)) for colour, count in parts if count],
        )


def _per_cent(part: int, whole: int) -> int:
    """Return a share, at least 1 per cent if there is any."""
    return max(round(100 * part / whole), 1) if part else 0


def _text(report: DayReport, title: str, summary: str, bars: Sequence[_Bar]) -> Iterator[str]:
    yield from (title, "=" * len(title), "", summary)
    if not bars:
        return
    yield from ("", *_lines("By status", _shown(report.by_status)))
    yield from ("", "By hour")
    width = len(f"{max(bar.total for bar in bars):,}")
    for bar in bars:
        length = max(_WIDTH * bar.length // 100, 1) if bar.total else 0
        yield f"  {bar.label}  {bar.total:>{width},}  {'#' * length}".rstrip()
    if report.by_reason:
        yield from ("", *_lines("By reason", report.by_reason))
    yield from ("", "Mailings")
    for mailing in report.mailings:
        counts = ", ".join(f"{count:,} {name}" for name, count in _shown(mailing.counts).items())
        yield f"  {mailing.id}  {mailing.status.value}: {counts}"
        yield f"    {mailing.title}"
    if more := report.mailing_count - len(report.mailings):
        yield f"  and {more:,} more"


def _lines(heading: str, counts: Mapping[str, int]) -> Iterator[str]:
    yield heading
    name_width = max(map(len, counts))
    width = max(len(f"{count:,}") for count in counts.values())
    for name, count in counts.items():
        yield f"  {name:<{name_width}}  {count:>{width},}"
