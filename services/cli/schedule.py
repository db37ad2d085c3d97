"""`ringback schedule`: scheduled callbacks, through the HTTP gateway."""

import json
from typing import Any, Final

import click

from services.cli.broker import run_task
from services.cli.gateway import LIMIT, Gateway, options, quoted, show_list, without_none
from services.cli.output import echo
from shared.contracts.schedule_requests import MAX_PAGE_SIZE
from shared.contracts.schedules import Status
from shared.process.logs import printable

_COLUMNS: Final = {
    "id": "ID",
    "status": "STATUS",
    "run_at": "RUN AT",
    "attempts": "ATTEMPTS",
    "group_key": "GROUP",
    "event_key": "EVENT",
    "last_error": "LAST ERROR",
}
_GROUP_KEY: Final = click.option("--group-key", help="Key of the group.")
_EVENT_KEY: Final = click.option("--event-key", help="Key of the callback within its group.")


@click.group
def schedule() -> None:
    """List, show, cancel and retry scheduled callbacks.

    The commands use the HTTP gateway. They see only the callbacks of the ticket's client.
    """


@schedule.command("list")
@options(
    _GROUP_KEY,
    _EVENT_KEY,
    click.option(
        "--status",
        type=click.Choice([status.value for status in Status]),
        help="Only callbacks with this status.",
    ),
    LIMIT,
)
def list_(  # noqa: PLR0913 - the options of the command
    group_key: str | None,
    event_key: str | None,
    status: str | None,
    limit: int,
    *,
    url: str | None,
    ticket: str | None,
    as_json: bool,
) -> None:
    """List callbacks, newest first.

    \b
    Examples:
      ringback schedule list
      ringback schedule list --group-key user-7 --status failed --limit 1000
      ringback schedule list --ticket "$(ringback ticket shop)" --json
    """
    wanted = without_none(group_key=group_key, event_key=event_key, status=status)
    found, more = run_task(Gateway(url, ticket).list_items("/v1/callbacks", wanted, limit))
    show_list(found, _COLUMNS, more=more, as_json=as_json)


@schedule.command
@click.argument("id_", metavar="[ID]", required=False)
@options(_GROUP_KEY, _EVENT_KEY)
def show(  # noqa: PLR0913 - the options of the command
    id_: str | None,
    group_key: str | None,
    event_key: str | None,
    *,
    url: str | None,
    ticket: str | None,
    as_json: bool,
) -> None:
    """Show one callback, by ID or by keys.

    \b
    Examples:
      ringback schedule show 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
      ringback schedule show --group-key user-7 --event-key reminder-1
    """
    path = _path(id_, group_key, event_key)
    status = run_task(Gateway(url, ticket).request("GET", path))
    if as_json:
        echo(json.dumps(status, ensure_ascii=False))
        return
    for name, value in status.items():
        if value is not None:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            echo(f"{name + ':':<13} {printable(shown)}")


@schedule.command
@click.argument("id_", metavar="[ID]", required=False)
@options(_GROUP_KEY, _EVENT_KEY)
def cancel(  # noqa: PLR0913 - the options of the command
    id_: str | None,
    group_key: str | None,
    event_key: str | None,
    *,
    url: str | None,
    ticket: str | None,
    as_json: bool,
) -> None:
    """Cancel one callback by ID or by keys, or a whole group by --group-key alone.

    Prints the result: cancelled, in_flight, already_notified or already_failed. With in_flight,
    the current dispatch continues, and no main retry follows.

    \b
    Examples:
      ringback schedule cancel 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
      ringback schedule cancel --group-key user-7
    """
    whole = id_ is None and event_key is None and group_key is not None
    path = f"/v1/groups/{quoted(group_key)}/callbacks" if whole else None
    gateway = Gateway(url, ticket)
    response = (
        run_task(_cancel_group(gateway, path))
        if path
        else run_task(gateway.request("DELETE", _path(id_, group_key, event_key)))
    )
    if as_json:
        echo(json.dumps(response, ensure_ascii=False))
    elif whole:
        counts = [f"{count} {result}" for result, count in response["counts"].items() if count]
        echo(", ".join(counts) or "The group is empty.")
    else:
        echo(f"{response['id']}  {response['result']}")


async def _cancel_group(gateway: Gateway, path: str) -> Any:
    """Cancel a group, in as many requests as it takes, and return the sum of the responses."""
    total = await gateway.request("DELETE", path)
    while cursor := total.pop("next_cursor", None):
        more = await gateway.request("DELETE", f"{path}?cursor={quoted(cursor)}")
        for result, count in more["counts"].items():
            total["counts"][result] = total["counts"].get(result, 0) + count
        total["next_cursor"] = more["next_cursor"]
    return total


@schedule.command
@click.argument("id_", metavar="[ID]", required=False)
@options(
    _GROUP_KEY,
    click.option("--failed-after", help="Only callbacks that failed after this time (RFC 3339)."),
    click.option("--failed-before", help="Only callbacks that failed before this time."),
    click.option(
        "--limit",
        type=click.IntRange(1, MAX_PAGE_SIZE),
        default=MAX_PAGE_SIZE,
        show_default=True,
        help="Maximum number of callbacks.",
    ),
    click.option("--dry-run", is_flag=True, help="Only list the callbacks."),
    click.option("--yes", is_flag=True, help="Do not prompt for confirmation."),
)
def retry(  # noqa: PLR0913 - the options of the command
    id_: str | None,
    group_key: str | None,
    failed_after: str | None,
    failed_before: str | None,
    limit: int,
    *,
    dry_run: bool,
    yes: bool,
    url: str | None,
    ticket: str | None,
    as_json: bool,
) -> None:
    """Retry failed callbacks: one by ID, a group, a time range, or all.

    The callbacks keep their ids, so a receiver can recognise repeats.

    \b
    Examples:
      ringback schedule retry --dry-run
      ringback schedule retry 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
      ringback schedule retry --group-key user-7 --failed-after 2026-11-20T00:00:00Z --yes
    """
    wanted: dict[str, Any] = without_none(
        id=id_, group_key=group_key, failed_after=failed_after, failed_before=failed_before
    )
    if not (dry_run or yes or id_):
        selection = "these" if wanted else "all"
        click.confirm(f"Retry {selection} failed callbacks?", abort=True, err=True)
    if not wanted:
        wanted["all"] = True
    wanted |= {"limit": limit, "dry_run": dry_run}
    response = run_task(Gateway(url, ticket).request("POST", "/v1/callbacks/retry", json=wanted))
    if as_json:
        echo(json.dumps(response))
        return
    for retried in response["ids"]:
        echo(retried)
    done = "would be retried" if dry_run else "retried"
    click.echo(f"{response['count']} {done}", err=True)


def _path(id_: str | None, group_key: str | None, event_key: str | None) -> str:
    """Return the path of one callback, by ID or by both keys."""
    if id_ is not None:
        if group_key is not None or event_key is not None:
            raise click.UsageError("Specify either ID or the keys.")
        return f"/v1/callbacks/{quoted(id_)}"
    if group_key is None or event_key is None:
        raise click.UsageError("Specify ID, or --group-key and --event-key.")
    return f"/v1/groups/{quoted(group_key)}/callbacks/{quoted(event_key)}"
