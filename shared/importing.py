"""Parsing of an import: numbered lines of CSV or JSON, from a stream of any length."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic_core import from_json

# Bytes of one line. A longer one is rejected, and is not kept in memory. So a batch of 1,000 lines
# fits into a message of 16 MiB, even if JSON escapes each byte with six.
MAX_LINE_BYTES: Final = 2048
_BOM: Final = b"\xef\xbb\xbf"

# Returns the object of a line.
LineParser = Callable[[bytes], Mapping[str, Any]]


class InvalidLineError(ValueError):
    """The line is not valid. The text is the reason."""


class Lines:
    """Splits a stream of bytes into lines with their numbers. Empty lines are skipped."""

    def __init__(self) -> None:
        self._number = 0
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that this chunk completes. Exhaust it before the next call."""
        *complete, rest = (self._rest + chunk).split(b"\n")
        # One byte more than a line may have shows that it is too long.
        self._rest = rest[: MAX_LINE_BYTES + 1]
        for line in complete:
            yield from self._numbered(line)

    def end(self) -> Iterator[tuple[int, bytes]]:
        """Yield the last line if no line break ends it."""
        yield from self._numbered(self._rest)

    def _numbered(self, line: bytes) -> Iterator[tuple[int, bytes]]:
        self._number += 1
        if self._number == 1:
            line = line.removeprefix(_BOM)
        if line := line.strip():
            yield self._number, line


def parse_json(line: bytes) -> Mapping[str, Any]:
    """Return the JSON object in a line.

    Raises:
        InvalidLineError: the line is too long, or not a JSON object of plain values.
    """
    _check_length(line)
    try:
        value = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidLineError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidLineError("is not a JSON object")
    # Their nesting could pass here, and make the whole batch too deep for the parser of mailings.
    for name, field in value.items():
        if isinstance(field, dict | list):
            raise InvalidLineError(f"{name[:40]!r} must not be an object or a list")
    return value


def csv_parser(header: bytes, columns: Iterable[str], mandatory: Iterable[str]) -> LineParser:
    """Return the parser of the lines after this header, which names columns in any order.

    Commas separate the fields, or semicolons if the header has them: spreadsheets write those
    where the comma is the decimal separator. An empty field is absent. A line break ends a line
    even between quotes, so that a missing quote spoils one line and not the rest of the file.

    Raises:
        InvalidLineError: the header is too long, or names an unknown column, or one twice, or
            lacks a mandatory one.
    """
    # No column has a semicolon in its name.
    delimiter = ";" if b";" in header else ","
    names = [name.lower() for name in _fields(header, delimiter)]
    known = ", ".join(columns)
    for name in names:
        if name not in columns:
            raise InvalidLineError(f"unknown column {name[:40]!r}; known: {known}")
        if names.count(name) > 1:
            raise InvalidLineError(f"the column {name} is named twice")
    if missing := [name for name in mandatory if name not in names]:
        raise InvalidLineError(f"the column {missing[0]} is missing")

    def parse(line: bytes) -> Mapping[str, Any]:
        values = _fields(line, delimiter)
        if len(values) != len(names):
            raise InvalidLineError(f"has {len(values)} fields, not {len(names)}")
        return {name: value for name, value in zip(names, values, strict=True) if value}

    return parse


def _fields(line: bytes, delimiter: str) -> Sequence[str]:
    """Return the fields of a line of CSV, without white space around them."""
    _check_length(line)
    try:
        [fields] = csv.reader((line.decode(),), delimiter=delimiter, strict=True)
    except UnicodeDecodeError:
        raise InvalidLineError("is not UTF-8") from None
    except (csv.Error, ValueError) as error:
        raise InvalidLineError(f"is not CSV: {error}") from None
    return [field.strip() for field in fields]


def _check_length(line: bytes) -> None:
    if len(line) > MAX_LINE_BYTES:
        raise InvalidLineError(f"is longer than {MAX_LINE_BYTES} bytes")
