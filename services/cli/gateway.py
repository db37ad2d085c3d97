"""How a command asks the gateway, as any client of it, and shows what it answers."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import click
from yarl import URL

from services.gateway.settings import GatewaySettings
from shared.process.configuration import configured_table
from shared.settings import connectable_host

# Seconds for one answer: the gateway itself waits ten for the service it asks.
PATIENCE: Final = 30.0
# Items in one answer; the gateway gives no more.
LONGEST_PAGE: Final = 1000


class Gateway:
    """Where the gateway is, and who calls it."""

    def __init__(self, url: str | None, ticket: str | None) -> None:
        if url is None:
            settings = configured_table(GatewaySettings)
            host = connectable_host(settings.http_host)
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

    async def pages(
        self, path: str, wanted: Mapping[str, str], limit: int
    ) -> tuple[list[dict[str, Any]], bool]:
        """The first items of a list, at most so many, and whether there are more."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            query = dict(wanted) | given(cursor=cursor)
            query["limit"] = str(min(limit - len(found), LONGEST_PAGE))
            page = await self.ask("GET", f"{path}?{URL.build(query=query).raw_query_string}")
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None or len(found) >= limit:
                return found, cursor is not None


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _told(status: int, problem: Any) -> str:
    """A problem in words, a line for each wrong field."""
    if not isinstance(problem, dict):
        return f"the gateway answered with status {status}."
    lines = [f"{problem.get('detail', 'no detail')} (status {status})"]
    lines += [f"  {error['field']}: {error['message']}" for error in problem.get("errors", ())]
    return "\n".join(lines)


def options(*own: Callable[..., Any]) -> Callable[..., Any]:
    """Options, above those that every command which asks the gateway has."""

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            (
                *own,
                click.option(
                    "--url",
                    help="Where the gateway is. Default: from RINGBACK_HTTP_HOST and _PORT.",
                ),
                click.option(
                    "--ticket",
                    envvar="RINGBACK_TICKET",
                    help="The service ticket of the client who asks; also RINGBACK_TICKET."
                    " Without one: the anonymous client.",
                ),
                click.option("--json", "as_json", is_flag=True, help="As JSON."),
            )
        ):
            command = option(command)
        return command

    return give


LIMIT: Final = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="At most so many.",
)


def given(**values: str | None) -> dict[str, str]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value is not None}


def quoted(key: str | None) -> str:
    """A key as a part of a path."""
    return quote(key or "", safe="")


def show_list(
    found: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    more: bool,
    as_json: bool,
) -> None:
    """Print the items: as JSON lines, or in these columns (field, title)."""
    if as_json:
        for item in found:
            click.echo(json.dumps(item, ensure_ascii=False))
        return
    for line in _table(found, columns):
        click.echo(line)
    there_is = "there are more: see --limit" if more else "that is all"
    click.echo(f"{len(found)} shown; {there_is}", err=True)


def _table(items: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """A line each, in columns as wide as what they hold; empty columns are left out."""
    if not items:
        return []
    cells = {
        name: [title, *("" if item[name] is None else str(item[name]) for item in items)]
        for name, title in columns.items()
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
