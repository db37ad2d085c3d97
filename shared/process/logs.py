"""Logs on standard error: one JSON object per line, or text."""

import json
import logging
import sys
import time
from functools import lru_cache
from typing import Any, Final

from pydantic_core import PydanticSerializationError, to_json
from pythonjsonlogger.core import RESERVED_ATTRS, BaseJsonFormatter

from shared.process.log_handler import NonBlockingHandler

_OWN: Final = frozenset(RESERVED_ATTRS) | {"message", "asctime"}


class _Json(BaseJsonFormatter):
    """JSON with `timestamp`, `level`, `message`, `service`, and the fields given as `extra`.

    Every attempt logs a line, so this overrides two methods of the library to take a third of its
    time.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        log_data["timestamp"] = _timestamp(record)
        log_data["level"] = record.levelname
        log_data["message"] = record.message
        log_data["service"] = self._service
        log_data.update(_context(record))
        log_data.update(message_dict)

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        try:
            return to_json(log_data, inf_nan_mode="strings", fallback=str).decode()
        except PydanticSerializationError:  # an unpaired surrogate, or bytes that are not UTF-8
            return json.dumps({name: str(value) for name, value in log_data.items()})


class _Text(logging.Formatter):
    """Text: time, level, service, message, then the fields as `name=value`.

    Control characters are escaped: the values come from outside, and the text goes to a terminal.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_timestamp(record)[11:23]} {record.levelname:8} {self._service}: "
        context = "".join(
            f"  {name}={printable(str(value))}" for name, value in _context(record).items()
        )
        first, *rest = super().format(record).split("\n")
        return "\n".join([head + first + context, *map(printable, rest)])

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in logging
        return printable(record.message)


def printable(text: str) -> str:
    """Return a text with its control characters escaped, so that a terminal only shows it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _context(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _OWN and value is not None
    }


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _timestamp(record: logging.LogRecord) -> str:
    return f"{_second(int(record.created))}.{int(record.msecs):03d}Z"


def configure(service: str, *, level: str, form: str) -> None:
    """Log to standard error from `level` up, as `json` or `text`."""
    handler = NonBlockingHandler(sys.stderr.fileno())
    handler.setFormatter(_Json(service) if form == "json" else _Text(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Skip what no formatter shows. The logging HOWTO names these switches.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001
    # aiormq logs lost connections, which our log reports once, and every frame at DEBUG.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
