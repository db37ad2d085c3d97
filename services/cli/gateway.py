"""A client of the gateway for commands, and their common options and output."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import click
from yarl import URL

from services.cli.broker import private_gateway
from services.cli.output import echo
from services.gateway.settings import GatewaySettings
from shared.process.configuration import configured_table
from shared.process.logs import printable
from shared.security.settings import SecuritySettings
from shared.settings import connectable_host

# Seconds. The gateway itself waits ten seconds for a service.
REQUEST_TIMEOUT: Final = 30.0
# The gateway's own limit.
MAX_PAGE_SIZE: Final = 1000


class Gateway:
    """A client of one gateway; without a ticket it is anonymous.

    The default gateway is the configured one, or else that of `ringback up` in this checkout.

    base: the URL of the gateway, without a slash at the end.
    """

    def __init__(self, url: str | None, ticket: str | None) -> None:
        settings = configured_table(GatewaySettings)
        if url is None and "http_port" not in settings.model_fields_set:
            url = private_gateway()
            if url is not None:
                click.echo(f"Using the gateway of this checkout, {url}", err=True)
        if url is None:
            host = connectable_host(settings.http_host)
            base = URL.build(scheme="http", host=host, port=settings.http_port)
        else:
            try:
                base = URL(url)
            except ValueError:
                base = URL()
            if base.scheme not in ("http", "https") or not base.host:
                raise click.BadParameter("must look like http://127.0.0.1:8080", param_hint="--url")
        self.base = str(base).rstrip("/")
        self._headers = (
            {} if ticket is None else {configured_table(SecuritySettings).ticket_header: ticket}
        )

    def session(
        self, *, timeout: float | None = REQUEST_TIMEOUT, limit: int = 100
    ) -> aiohttp.ClientSession:
        """Return a session with the ticket and up to `limit` connections. The caller closes it."""
        timeouts = aiohttp.ClientTimeout(total=timeout, sock_connect=REQUEST_TIMEOUT)
        return aiohttp.ClientSession(
            timeout=timeouts,
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=limit),
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        timeout: float | None = REQUEST_TIMEOUT,  # noqa: ASYNC109 - of the whole request
        **request: Any,
    ) -> Any:
        """Send a request and return the JSON of the response. `timeout` is in seconds.

        Raises:
            click.ClickException: the gateway is unreachable, or the response is a problem.
        """
        try:
            async with (
                self.session(timeout=timeout) as session,
                session.request(
                    method, URL(self.base + path, encoded=True), allow_redirects=False, **request
                ) as response,
            ):
                text = await response.text()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise click.ClickException(
                f"Cannot reach the gateway at {self.base}: {_short(error)}."
                " Start one with `ringback run gateway`, or set its address with --url."
            ) from None
        try:
            content = json.loads(text)
        except ValueError:
            raise self._not_a_gateway(f"status {response.status} without JSON") from None
        if not response.ok:
            raise click.ClickException(_problem_text(response.status, content))
        if not isinstance(content, dict):
            raise self._not_a_gateway(f"status {response.status} without a JSON object")
        return content

    def _not_a_gateway(self, fault: str) -> click.ClickException:
        return click.ClickException(
            f"The server at {self.base} is not a gateway: {fault}. Check the address."
        )

    async def list_items(
        self, path: str, filters: Mapping[str, str], limit: int
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return the first items of a list, at most `limit`, and whether more follow."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            query = dict(filters) | without_none(cursor=cursor)
            query["limit"] = str(min(limit - len(found), MAX_PAGE_SIZE))
            page = await self.request("GET", f"{path}?{URL.build(query=query).raw_query_string}")
            try:
                found += page["items"]
                cursor = page["next_cursor"]
            except (KeyError, TypeError):
                raise self._not_a_gateway("its response is not a list of items") from None
            if cursor is None or len(found) >= limit:
                return found, cursor is not None


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _problem_text(status: int, problem: Any) -> str:
    """Return the text of a problem, with a line for each rejected field."""
    if not isinstance(problem, dict):
        return f"The gateway responded with status {status}."
    lines = [f"{problem.get('detail', 'no detail')} (status {status})"]
    lines += [f"  {error['field']}: {error['message']}" for error in problem.get("errors", ())]
    return "\n".join(lines)


def options(*own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator that adds these options, and those of every client of the gateway."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            (
                *own,
                click.option(
                    "--url",
                    help="URL of the gateway. Default: from RINGBACK_HTTP_HOST and _PORT, or"
                    " that of `ringback up` in this checkout.",
                ),
                click.option(
                    "--ticket",
                    envvar="RINGBACK_TICKET",
                    help="Service ticket of the client. Without a ticket: the anonymous client.",
                    show_envvar=True,
                ),
                click.option("--json", "as_json", is_flag=True, help="Print JSON."),
            )
        ):
            command = option(command)
        return command

    return decorate


LIMIT: Final = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Maximum number of items.",
)


def without_none(**values: str | None) -> dict[str, str]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def quoted(key: str | None) -> str:
    """Return the key, escaped for a path."""
    return quote(key or "", safe="")


def show_list(
    found: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    more: bool,
    as_json: bool,
) -> None:
    """Print the items as JSON lines, or as a table; `columns` are titles by field."""
    if as_json:
        for item in found:
            echo(json.dumps(item, ensure_ascii=False))
        return
    for line in _table(found, columns):
        echo(line)
    rest = "more follow, see --limit" if more else "no more follow"
    click.echo(f"{len(found)} shown; {rest}", err=True)


def _table(items: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """Return the lines of a table; columns without any value are omitted."""
    if not items:
        return []
    cells = {
        name: [title, *("" if item[name] is None else printable(str(item[name])) for item in items)]
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
