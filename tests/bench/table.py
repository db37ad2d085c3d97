"""The result of a run: rows of figures with their ratio and target."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """Whether a ratio or figure meets its target."""

    OK = "ok"
    SHORT = "SHORT"
    OPEN = "-"  # no target, or this machine cannot decide it


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `ratio` is that of `ours` to `against`, the figure of the alternative."""

    what: str
    unit: str
    ours: float
    against: float | None = None
    ratio: float | None = None
    target: str = ""
    verdict: Verdict = Verdict.OPEN


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one part. `against` is the title of the column of the alternative."""

    part: str
    title: str
    against: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()


def at_most(value: float, bound: float) -> Verdict:
    return Verdict.OK if value <= bound else Verdict.SHORT


def at_least(value: float, bound: float) -> Verdict:
    return Verdict.OK if value >= bound else Verdict.SHORT


def plain(sections: Sequence[Section]) -> str:
    """Return the table as text, 100 characters wide."""
    lines = []
    for section in sections:
        head = f"{section.part}. {section.title}"
        lines += ["", f"{head:52}{'ratio':>7}{'ours':>9}{section.against:>14}  target"]
        lines += [_line(row) for row in section.rows]
        lines += [f"   {note}" for note in section.notes]
    return "\n".join(lines)


def _line(row: Row) -> str:
    name = f"   {row.what}, {row.unit}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    against = "" if row.against is None else _figure(row.against)
    verdict = "" if row.verdict is Verdict.OPEN else f" {row.verdict}"
    return f"{name:52}{ratio:>7}{_figure(row.ours):>9}{against:>14}  {row.target}{verdict}".rstrip()


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def data(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Return the table as plain data for JSON."""
    return [asdict(section) for section in sections]
