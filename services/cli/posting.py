"""`ringback posting`: shows the progress of postings, as a client of the gateway."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from services.cli.broker import run_task
from services.cli.gateway import LIMIT, Gateway, options, quoted, show_list, without_none
from services.cli.output import echo
from shared.contracts.posting_requests import MessageState

# Total length of the bars, in characters.
_WIDTH: Final = 40
_POSTINGS: Final = {
    "id": "ID",
    "template": "TEMPLATE",
    "status": "STATUS",
    "accepted_at": "ACCEPTED AT",
    "receivers": "RECEIVERS",
    "reason": "REASON",
}
_MESSAGES: Final = {
    "id": "ID",
    "user_id": "USER",
    "channel": "CHANNEL",
    "status": "STATUS",
    "settled_at": "SETTLED AT",
    "reason": "REASON",
}


@click.group
def posting() -> None:
    """Show postings and their messages.

    The commands use the HTTP gateway. They show the postings that the ticket's client can see.
    """


@posting.command
@click.argument("id_", metavar="ID")
@options()
def show(id_: str, *, url: str | None, ticket: str | None, as_json: bool) -> None:
    """Show the progress of a posting, with its messages counted by status.

    \b
    Examples:
      ringback posting show 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
      ringback posting show 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11 --json
      watch ringback posting show 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
    """
    status = run_task(Gateway(url, ticket).request("GET", f"/v1/postings/{quoted(id_)}"))
    if as_json:
        echo(json.dumps(status, ensure_ascii=False))
        return
    for line in progress_lines(status):
        echo(line)


@posting.command("list")
@options(click.option("--from-event", help="Only postings that this event caused."), LIMIT)
def list_(
    from_event: str | None, limit: int, *, url: str | None, ticket: str | None, as_json: bool
) -> None:
    """List postings, newest first.

    \b
    Examples:
      ringback posting list --limit 5
      ringback posting list --from-event new-movies-2026-11-20
    """
    query = without_none(from_event=from_event)
    found, more = run_task(Gateway(url, ticket).list_items("/v1/postings", query, limit))
    show_list(found, _POSTINGS, more=more, as_json=as_json)


@posting.command
@click.argument("id_", metavar="ID")
@options(
    click.option(
        "--status",
        type=click.Choice([state.value for state in MessageState]),
        help="Only messages with this status.",
    ),
    LIMIT,
)
def messages(  # noqa: PLR0913 - the options of the command
    id_: str,
    status: str | None,
    limit: int,
    *,
    url: str | None,
    ticket: str | None,
    as_json: bool,
) -> None:
    """List the messages of a posting, ordered by id.

    \b
    Examples:
      ringback posting messages 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11 --status failed
      ringback posting messages 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11 --limit 100000 --json
    """
    path = f"/v1/postings/{quoted(id_)}/messages"
    filters = without_none(status=status)
    found, more = run_task(Gateway(url, ticket).list_items(path, filters, limit))
    show_list(found, _MESSAGES, more=more, as_json=as_json)


def progress_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield the progress of a posting as lines of text."""
    fields = {
        "id": status["id"],
        "status": status["status"],
        "reason": status["reason"],
        "from_event": status["from_event"],
        "template": f"{status['template']}, by {' and '.join(status['delivery_type'])}",
        "accepted_at": status["accepted_at"],
        "expires_at": status["expires_at"],
        "receivers": f"{status['receivers']} on {status['pages']} pages",
    }
    for name, value in fields.items():
        if value is not None:
            yield f"{name + ':':<12} {value}"
    # Only messages of mailings can be cancelled.
    states = (state.value for state in MessageState if state is not MessageState.CANCELLED)
    yield ""
    yield from _bars({state: status["messages"].get(state, 0) for state in states})
    for reason, count in sorted(status["skipped"].items(), key=lambda item: -item[1]):
        yield f"  {count} {reason}"


def _bars(counts: Mapping[str, int]) -> Iterator[str]:
    """Return a bar per status. A status with messages has at least one character."""
    total = sum(counts.values())
    digits = len(str(max(counts.values(), default=0)))
    for name, count in counts.items():
        length = max(_WIDTH * count // total, 1) if count else 0
        yield f"{name:<8} {count:>{digits}}  {'#' * length}".rstrip()
