"""`ringback clients`: the client directory, through the HTTP gateway."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

import click
from tqdm import tqdm

from services.cli.broker import run_task
from services.cli.gateway import LIMIT, Gateway, options, show_list, without_none
from services.cli.output import echo
from shared.process.logs import printable

# Bytes that are read from the file at a time.
CHUNK: Final = 65_536
_FORMATS: Final = {"csv": "text/csv", "jsonl": "application/x-ndjson"}
_JSON_LINES: Final = frozenset({".jsonl", ".ndjson"})
_COLUMNS: Final = {
    "id": "ID",
    "phone": "PHONE",
    "operator_code": "OPERATOR",
    "tag": "TAG",
    "timezone": "TIME ZONE",
}


@click.group
def clients() -> None:
    """Import and list the clients that mailings reach.

    The commands use the HTTP gateway. They see only the clients of the ticket's caller.
    """


@clients.command("list")
@options(
    click.option("--phone", help="Only clients whose phone begins like this."),
    click.option("--operator-code", help="Only clients with this operator code."),
    click.option("--tag", help="Only clients with this tag."),
    click.option("--timezone", help="Only clients in this time zone."),
    LIMIT,
)
def list_(  # noqa: PLR0913 - the options of the command
    phone: str | None,
    operator_code: str | None,
    tag: str | None,
    timezone: str | None,
    limit: int,
    *,
    url: str | None,
    ticket: str | None,
    as_json: bool,
) -> None:
    """List clients in the order of their creation, or with --phone ordered by phone.

    \b
    Examples:
      ringback clients list --tag regular --timezone Europe/Moscow
      ringback clients list --phone 7916 --limit 1000 --json
    """
    wanted = without_none(phone=phone, operator_code=operator_code, tag=tag, timezone=timezone)
    found, more = run_task(Gateway(url, ticket).list_items("/v1/clients", wanted, limit))
    show_list(found, _COLUMNS, more=more, as_json=as_json)


@clients.command("import")
@click.argument("file", type=click.File("rb"))
@options(
    click.option(
        "--format",
        "format_",
        type=click.Choice(list(_FORMATS)),
        help="Format of FILE. Default: jsonl for names that end in .jsonl or .ndjson, else csv.",
    )
)
def import_(
    file: IO[bytes],
    format_: str | None,
    *,
    url: str | None,
    ticket: str | None,
    as_json: bool,
) -> None:
    """Create or replace clients from the lines of FILE; `-` is standard input.

    A CSV begins with a line that names its columns: phone, timezone, and optionally operator_code
    and tag. JSON lines have an object with these fields each. The phone identifies a client.

    Lines that are not valid are listed, and all others are imported. The exit code is then 1. After
    an interruption, import the same file again.

    \b
    Examples:
      ringback clients import clients.csv
      gunzip -c clients.jsonl.gz | ringback clients import - --format jsonl
    """
    if format_ is None:
        format_ = "jsonl" if Path(file.name).suffix.lower() in _JSON_LINES else "csv"
    gateway = Gateway(url, ticket)
    with tqdm(
        total=_size(file), unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty()
    ) as bar:
        report = run_task(
            gateway.request(
                *("POST", "/v1/clients/import"),
                timeout=None,  # a million lines take a minute
                data=_chunks(file, bar),
                headers={"Content-Type": _FORMATS[format_]},
            )
        )
    if as_json:
        echo(json.dumps(report, ensure_ascii=False))
    else:
        for error in report["errors"]:
            echo(f"line {error['line']}: {printable(error['reason'])}")
        more = report["failed"] - len(report["errors"])
        if more:
            echo(f"... and {more} more lines")
        counts = (f"{report[name]} {name}" for name in ("created", "updated", "failed"))
        click.echo(", ".join(counts), err=True)
    if report["failed"]:
        raise click.exceptions.Exit(1)


def _size(file: IO[bytes]) -> int | None:
    """Return the size of a file in bytes; None if it is a pipe."""
    with suppress(OSError):
        return os.fstat(file.fileno()).st_size or None
    return None


async def _chunks(file: IO[bytes], bar: Any) -> AsyncIterator[bytes]:
    """Yield the file in chunks. The gateway reads the next one when it has room for it."""
    while chunk := file.read(CHUNK):
        yield chunk
        bar.update(len(chunk))
