"""`ringback schedule`: look after scheduled callbacks, as a client of the gateway."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import click
from yarl import URL

from services.cli.broker import work
from shared.contracts.schedule_requests import LONGEST_PAGE
from shared.contracts.schedules import Status
from shared.process.configuration import configured
from shared.settings import reachable

# Seconds for one answer: the gateway itself waits ten for the scheduler.
PATIENCE: Final = 30.0
_COLUMNS: Final = {
    "id": "ID",
    "status": "STATUS",
    "run_at": "RUN AT",
    "attempts": "TRIES",
    "group_key": "GROUP",
    "event_key": "EVENT",
    "last_error": "LAST ERROR",
}


class Gateway:
    """Where the gateway is, and who calls it."""

    def __init__(self, url: str | None, ticket: str | None) -> None:
        if url is None:
            settings = configured()
            host = reachable(settings.http_host)
            base = URL.build(scheme="http", host=host, port=settings.http_port)
        else:
            try:
                base = URL(url)
            except ValueError:
                base = URL()
            if base.scheme not in ("http", "https") or not base.host:
                raise click.BadParameter("must look like http://127.0.0.1:8080", param_hint="--url")
        self._base = str(base).rstrip("/")
        self._headers = {} if ticket is None else {"X-Service-Ticket": ticket}

    async def ask(self, method: str, path: str, **request: Any) -> Any:
        """The answer's JSON.

        Raises:
            click.ClickException: no gateway answers, or it answers with a problem.
        """
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session,
                session.request(
                    method, URL(self._base + path, encoded=True), allow_redirects=False, **request
                ) as answer,
            ):
                text = await answer.text()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise click.ClickException(
                f"no gateway answers at {self._base} ({_short(error)})."
                " Start one with `ringback run gateway`, or say with --url where it is."
            ) from None
        try:
            content = json.loads(text)
        except ValueError:
            raise click.ClickException(
                f"what answers at {self._base} is no gateway: status {answer.status}, no JSON."
            ) from None
        if answer.ok:
            return content
        raise click.ClickException(_told(answer.status, content))


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _told(status: int, problem: Any) -> str:
    """A problem in words, a line for each wrong field."""
    if not isinstance(problem, dict):
        return f"the gateway answered with status {status}."
    lines = [f"{problem.get('detail', 'no detail')} (status {status})"]
    lines += [f"  {error['field']}: {error['message']}" for error in problem.get("errors", ())]
    return "\n".join(lines)


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Options, above those that every command here has."""

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            (
                *options,
                click.option(
                    "--url",
                    help="Where the gateway is. Default: from RINGBACK_HTTP_HOST and _PORT.",
                ),
                click.option(
                    "--ticket",
                    envvar="RINGBACK_TICKET",
                    help="The service ticket of the client whose callbacks these are; also"
                    " RINGBACK_TICKET. Without one: the anonymous client.",
                ),
                click.option("--json", "as_json", is_flag=True, help="As JSON."),
            )
        ):
            command = option(command)
        return command

    return give


_GROUP_KEY: Final = click.option("--group-key", help="The key of a group.")
_EVENT_KEY: Final = click.option("--event-key", help="The key of an event.")


@click.group
def schedule() -> None:
    """Scheduled callbacks: list, show, cancel, and retry those that failed.

    A client of the HTTP gateway: it shows the callbacks of one client, that of the ticket.
    """


@schedule.command("list")
@_options(
    _GROUP_KEY,
    _EVENT_KEY,
    click.option(
        "--status",
        type=click.Choice([status.value for status in Status]),
        help="Only those in this state.",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=20,
        show_default=True,
        help="At most so many.",
    ),
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
    wanted = _given(group_key=group_key, event_key=event_key, status=status)
    found, more = work(_pages(Gateway(url, ticket), wanted, limit))
    if as_json:
        for item in found:
            click.echo(json.dumps(item, ensure_ascii=False))
        return
    for line in _table(found):
        click.echo(line)
    there_is = "there are more: see --limit" if more else "that is all"
    click.echo(f"{len(found)} shown; {there_is}", err=True)


async def _pages(
    gateway: Gateway, wanted: Mapping[str, str], limit: int
) -> tuple[list[dict[str, Any]], bool]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        query = dict(wanted) | _given(cursor=cursor)
        query["limit"] = str(min(limit - len(found), LONGEST_PAGE))
        page = await gateway.ask("GET", "/v1/callbacks?" + URL.build(query=query).raw_query_string)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None or len(found) >= limit:
            return found, cursor is not None


@schedule.command
@click.argument("id_", metavar="[ID]", required=False)
@_options(_GROUP_KEY, _EVENT_KEY)
def show(  # noqa: PLR0913 - the options of the command
    id_: str | None,
    group_key: str | None,
    event_key: str | None,
    *,
    url: str | None,
    ticket: str | None,
    as_json: bool,
) -> None:
    """Show one callback, by ID or by its keys.

    \b
    Examples:
      ringback schedule show 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
      ringback schedule show --group-key user-7 --event-key reminder-1
    """
    path = _path(id_, group_key, event_key)
    status = work(Gateway(url, ticket).ask("GET", path))
    if as_json:
        click.echo(json.dumps(status, ensure_ascii=False))
        return
    for name, value in status.items():
        if value is not None:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            click.echo(f"{name + ':':<13} {shown}")


@schedule.command
@click.argument("id_", metavar="[ID]", required=False)
@_options(_GROUP_KEY, _EVENT_KEY)
def cancel(  # noqa: PLR0913 - the options of the command
    id_: str | None,
    group_key: str | None,
    event_key: str | None,
    *,
    url: str | None,
    ticket: str | None,
    as_json: bool,
) -> None:
    """Cancel one callback, by ID or by its keys; with --group-key alone, a whole group.

    Says what became of it: cancelled; in_flight (it is on its way, no more tries follow);
    already_notified; already_failed.

    \b
    Examples:
      ringback schedule cancel 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
      ringback schedule cancel --group-key user-7
    """
    whole = id_ is None and event_key is None and group_key is not None
    path = f"/v1/groups/{_quoted(group_key)}/callbacks" if whole else None
    answer = work(Gateway(url, ticket).ask("DELETE", path or _path(id_, group_key, event_key)))
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    elif whole:
        counts = [f"{count} {result}" for result, count in answer["counts"].items() if count]
        click.echo(", ".join(counts) or "there is nothing in this group")
    else:
        click.echo(f"{answer['id']}  {answer['result']}")


@schedule.command
@click.argument("id_", metavar="[ID]", required=False)
@_options(
    _GROUP_KEY,
    click.option("--failed-after", help="Only those that failed after this moment (RFC 3339)."),
    click.option("--failed-before", help="Only those that failed before it."),
    click.option(
        "--limit",
        type=click.IntRange(1, LONGEST_PAGE),
        default=LONGEST_PAGE,
        show_default=True,
        help="At most so many.",
    ),
    click.option("--dry-run", is_flag=True, help="Only list what would be started."),
    click.option("--yes", is_flag=True, help="Do not ask first."),
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
    """Start failed callbacks again: one by ID, a group, those of a while, or all.

    They keep their ids: the receiver sees repeats of the same callback.

    \b
    Examples:
      ringback schedule retry --dry-run
      ringback schedule retry 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
      ringback schedule retry --group-key user-7 --failed-after 2026-11-20T00:00:00Z --yes
    """
    wanted: dict[str, Any] = _given(
        id=id_, group_key=group_key, failed_after=failed_after, failed_before=failed_before
    )
    if not (dry_run or yes or id_):
        what = "these" if wanted else "all"
        click.confirm(f"Start {what} failed callbacks again?", abort=True, err=True)
    wanted |= {"limit": limit, "dry_run": dry_run}
    answer = work(Gateway(url, ticket).ask("POST", "/v1/callbacks/retry", json=wanted))
    if as_json:
        click.echo(json.dumps(answer))
        return
    for identity in answer["ids"]:
        click.echo(identity)
    done = "would be started again" if dry_run else "started again"
    click.echo(f"{answer['count']} {done}", err=True)


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _quoted(key: str | None) -> str:
    return quote(key or "", safe="")


def _path(id_: str | None, group_key: str | None, event_key: str | None) -> str:
    """Where one callback is: by id, or by both keys."""
    if id_ is not None:
        if group_key is not None or event_key is not None:
            raise click.UsageError("Give either ID or the keys.")
        return f"/v1/callbacks/{_quoted(id_)}"
    if group_key is None or event_key is None:
        raise click.UsageError("Give ID, or --group-key and --event-key.")
    return f"/v1/groups/{_quoted(group_key)}/callbacks/{_quoted(event_key)}"


def _table(items: list[dict[str, Any]]) -> list[str]:
    """A line each, in columns as wide as what they hold; empty columns are left out."""
    if not items:
        return []
    cells = {
        name: [title, *("" if item[name] is None else str(item[name]) for item in items)]
        for name, title in _COLUMNS.items()
        if any(item[name] is not None for item in items)
    }
    widths = {name: max(map(len, column)) for name, column in cells.items()}
    rows = zip(*cells.values(), strict=True)
    return [
        "  ".join(
            f"{cell:<{width}}" for cell, width in zip(row, widths.values(), strict=True)
        ).rstrip()
        for row in rows
    ]
