"""`ringback timeline`: the story of a callback, through the HTTP gateway."""

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click

from services.cli.broker import run_task
from services.cli.gateway import Gateway, options, quoted
from services.cli.output import echo
from shared.contracts.journal import AttemptOutcome
from shared.contracts.journal_reads import StepKind
from shared.process.logs import printable

_GOOD: Final = {StepKind.NOTIFIED, StepKind.SENT}
_BAD: Final = {
    *(StepKind.DISPATCH_FAILED, StepKind.EXPIRED, StepKind.FAILED),
    *(StepKind.DEAD, StepKind.DISCARDED),
}
_WAITS: Final = {
    *(StepKind.SCHEDULED, StepKind.RESCHEDULED, StepKind.TIER, StepKind.RETRY),
}
# A symbol and a colour for each mark; the second symbol is for terminals without Unicode.
_MARKS: Final = {
    "good": ("✔", "+", "green"),
    "bad": ("✘", "x", "red"),
    "wait": ("◌", "o", "yellow"),
    "step": ("●", "*", None),
}
_LINE: Final = ("│", "|")
_TIME_WIDTH: Final = len("2026-11-20 12:00:00.000")


@click.command
@click.argument("id_", metavar="ID")
@options()
def timeline(id_: str, *, url: str | None, ticket: str | None, as_json: bool) -> None:
    """Show the story of a callback: each step from its schedule to its end, in UTC.

    ID is the id of the callback, or the webhook-id of a request. The command uses the HTTP gateway.
    It sees only the callbacks of the ticket's client, except with the ticket of an operator.

    \b
    Examples:
      ringback timeline 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
      ringback timeline invoice-7-paid --ticket "$(ringback ticket shop)" --json
    """
    path = f"/v1/callbacks/{quoted(id_)}/timeline"
    story = run_task(Gateway(url, ticket).request("GET", path))
    if as_json:
        echo(json.dumps(story, ensure_ascii=False))
        return
    for line in picture(story, unicode=_can_print_symbols()):
        echo(line)
    if story["next_cursor"] is not None:
        click.echo("Earlier steps are not shown.", err=True)
    if story["gaps"]:
        click.echo("The journal has missed facts since then; steps can be missing.", err=True)


def picture(story: Mapping[str, Any], *, unicode: bool) -> Iterator[str]:
    """Yield the lines of a timeline."""
    plain = 0 if unicode else 1
    steps = story["items"]
    if not steps:
        yield "The journal has no steps of this callback yet."
    for step in steps:
        *symbols, colour = _MARKS[_mark(step)]
        mark = click.style(symbols[plain], fg=colour)
        yield f"{_time(step['at'])}  {mark}  {printable(step['text'])}"
        if step["until"] is not None:
            yield f"{'':{_TIME_WIDTH}}  {_LINE[plain]}  until {_time(step['until'])}"
    if story["kept"]:
        yield f"{'':{_TIME_WIDTH}}     Its request is kept; it can be sent again."


def _mark(step: Mapping[str, Any]) -> str:
    kind = step["kind"]
    if kind == StepKind.ATTEMPT:
        return "good" if step["entry"]["outcome"] == AttemptOutcome.DELIVERED else "bad"
    return (
        "good" if kind in _GOOD else "bad" if kind in _BAD else "wait" if kind in _WAITS else "step"
    )


def _time(text: str) -> str:
    at = datetime.fromisoformat(text).astimezone(UTC)
    return at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03}"


def _can_print_symbols() -> bool:
    """Return whether the encoding of standard output has the symbols."""
    symbols = "".join(mark[0] for mark in _MARKS.values()) + _LINE[0]
    try:
        symbols.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
