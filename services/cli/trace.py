"""`ringback trace`: finds the log lines about one mailing, message or recipient."""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from heapq import merge
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import click
from pydantic_core import from_json, to_json

from services.cli.output import echo
from shared.process.logs import printable

# The log fields that contain the id of each kind. A user of a posting is a recipient too.
FIELDS: Final = {
    "mailing": ("mailing_id",),
    "message": ("message_id",),
    "recipient": ("recipient_id", "recipient_ids", "user_id"),
}
# Found lines that are sorted in memory; more are sorted in files. A line has some 400 bytes.
RUN_SIZE: Final = 50_000
_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
# Fields that say how it ended; they are shown first.
_RESULT: Final = ("status", "error", "reason", "detail")
_HEAD: Final = frozenset({"timestamp", "level", "service", "message"})


@click.command
@click.argument("kind", type=click.Choice(list(FIELDS)))
@click.argument("id_", metavar="ID")
@click.argument(
    "files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False)
)
@click.option("--json", "as_json", is_flag=True, help="Print the log lines as they are.")
def trace(kind: str, id_: str, files: tuple[str, ...], *, as_json: bool) -> None:
    """Print what happened to a mailing, a message or a recipient, in order of time.

    FILE is a log of any service; the default is standard input. Services must log as JSON. A
    prefix before the JSON, such as that of `docker compose logs`, is ignored. Lines that are not
    JSON are skipped.

    Each row has the time in UTC, the service, what happened, and the result with other fields.

    \b
    Examples:
      ringback trace message 0b0c3f0e-… delivery.log mailings.log
      docker compose logs | ringback trace mailing 0199c2c0-…
      zcat /var/log/ringback/*.gz | ringback trace recipient 0199c2bf-… --json
    """
    names = FIELDS[kind]
    found = _find(_lines(files), id_, names)
    count = 0
    for line in sort_by_time(found, RUN_SIZE):
        count += 1
        text = line.partition(b" ")[2].rstrip()
        echo(text.decode() if as_json else _row(from_json(text), names))
    if not count:
        raise click.ClickException(
            f"Cannot trace {kind} {id_!r}: no log line contains it. Check the id and the files; the"
            " logs must be JSON."
        )


def _lines(files: Iterable[str]) -> Iterator[bytes]:
    for path in files or ("-",):
        with sys.stdin.buffer if path == "-" else Path(path).open("rb") as file:
            yield from file


def _find(lines: Iterable[bytes], id_: str, names: Iterable[str]) -> Iterator[bytes]:
    """Yield the timestamp, a space and the JSON of each line that has the id in such a field."""
    wanted = json.dumps(id_, ensure_ascii=False).encode()
    for line in lines:
        if wanted not in line:
            continue
        text = line[line.find(b"{") :].strip()
        try:
            fields = from_json(text)
        except ValueError:
            continue
        if isinstance(fields, dict) and any(_names(fields.get(name), id_) for name in names):
            timestamp = fields.get("timestamp")
            if isinstance(timestamp, str) and _TIMESTAMP.fullmatch(timestamp):
                yield b"%b %b\n" % (timestamp.encode(), text)


def _names(value: Any, id_: str) -> bool:
    return value == id_ or (isinstance(value, list) and id_ in value)


def sort_by_time(lines: Iterator[bytes], run_size: int) -> Iterator[bytes]:
    """Yield lines sorted by the text before their first space; equal ones keep their order.

    At most `run_size` lines are in memory. The others are sorted in temporary files.
    """
    with ExitStack() as stack:
        runs: list[Iterable[bytes]] = []
        while run := sorted(islice(lines, run_size), key=_time):
            if len(run) < run_size:
                runs.append(run)
                continue
            file = stack.enter_context(TemporaryFile())
            file.writelines(run)
            file.seek(0)
            runs.append(file)
        yield from merge(*runs, key=_time)


def _time(line: bytes) -> bytes:
    return line.partition(b" ")[0]


def _row(fields: dict[str, Any], names: Iterable[str]) -> str:
    """Return the time, the service, what happened, the result and the other fields."""
    results = {name: fields[name] for name in _RESULT if name in fields}
    hidden = {*_HEAD, *names, "exc_info"}
    shown = results | {name: value for name, value in fields.items() if name not in hidden}
    time = fields["timestamp"].replace("T", " ").rstrip("Z")
    service, message = (_text(fields.get(name, "-")) for name in ("service", "message"))
    head = f"{time}  {service:10} {message:28}"
    return printable(
        "  ".join([head, *(f"{name}={_text(value)}" for name, value in shown.items())])
    )


def _text(value: Any) -> str:
    """Return a value as text: a string without quotes, anything else as JSON."""
    return value if isinstance(value, str) else to_json(value).decode()
