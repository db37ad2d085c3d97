"""The result: rows of figures, ratios first, with the target each is held against."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a ratio or figure stands against its target."""

    OK = "ok"
    SHORT = "SHORT"
    OPEN = "-"  # there is no target, or this machine can't tell


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing. `against` is what `ours` is compared with; the ratio is of the two."""

    what: str
    unit: str
    ours: float
    against: float | None = None
    ratio: float | None = None
    target: str = ""
    verdict: Verdict = Verdict.OPEN


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one part; `against` says what stands in their second column of figures."""

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
    """The table as text, 100 characters wide."""
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
    """The same for a program to read."""
    return [asdict(section) for section in sections]
