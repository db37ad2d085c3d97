"""H5: each log line is one JSON object, whatever its values, or readable text."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from shared.process import logs
from shared.process.log_handler import NonBlockingHandler

logger = logging.getLogger("ringback.test")


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Restore the handlers of pytest and the switches of logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    switches = ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile")
    before = {name: getattr(logging, name) for name in switches}
    others = {name: logging.getLogger(name).level for name in ("aiormq", "aiohttp.access")}
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)
    for name, value in before.items():
        setattr(logging, name, value)
    for name, each in others.items():
        logging.getLogger(name).setLevel(each)


class Lines:
    """The lines logged since the last call."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def text(self) -> str:
        out, err = self._capfd.readouterr()
        assert out == ""
        return err

    def parsed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


def configured(capfd: pytest.CaptureFixture[str], level: str = "INFO", form: str = "json") -> Lines:
    """Log as a service does. Call it in the test: pytest closes the stream of a fixture."""
    logs.configure("callback", level=level, form=form)
    return Lines(capfd)


# H5
def test_h5_a_line_has_time_level_message_service_and_context(
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = configured(capfd)
    before = datetime.now(UTC)
    logger.warning("tried %d times", 3, extra={"callback_id": "id-1", "attempt": 3, "none": None})
    [line] = lines.parsed()
    timestamp = line.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp)
    logged_at = datetime.fromisoformat(timestamp)
    assert abs((logged_at - before).total_seconds()) < 5
    assert line == {
        "level": "WARNING",
        "message": "tried 3 times",
        "service": "callback",
        "callback_id": "id-1",
        "attempt": 3,
    }


# H5
@pytest.mark.parametrize("created", [0.0, 1_800_000_000.0, 1_800_000_000.0009, 1_799_999_999.9999])
def test_h5_the_timestamp_is_rfc_3339_in_utc(
    capfd: pytest.CaptureFixture[str], created: float
) -> None:
    lines = configured(capfd)
    record = logging.LogRecord("x", logging.INFO, "", 0, "now", None, None)
    record.created, record.msecs = created, (created % 1) * 1000
    logger.handle(record)
    [line] = lines.parsed()
    logged_at = datetime.fromisoformat(line["timestamp"])
    assert logged_at.tzinfo == UTC
    assert 0 <= created - logged_at.timestamp() < 0.002


# H5
def test_h5_an_exception_is_on_the_line_of_its_message(capfd: pytest.CaptureFixture[str]) -> None:
    lines = configured(capfd)
    try:
        int("first\nsecond")
    except ValueError:
        logger.exception("it broke\nbadly", extra={"callback_id": "id-1"})
    text = lines.text()
    assert text.count("\n") == 1
    line = json.loads(text)
    assert line["message"] == "it broke\nbadly"
    assert "Traceback (most recent call last)" in line["exc_info"]
    assert "ValueError: invalid literal" in line["exc_info"]
    assert line["callback_id"] == "id-1"


anything = st.one_of(
    st.text(st.sampled_from('a"\\\n\r\t\0\x1b\x7f\x85\u2028\ud800\U0001f600'), max_size=8),
    st.binary(max_size=4),
    st.floats(),
    st.integers(),
    st.lists(st.floats(), max_size=2),
    st.dictionaries(st.sampled_from(["a", "\ud800"]), st.binary(max_size=2), max_size=2),
    st.builds(object),
    st.builds(ValueError, st.text(st.sampled_from("a\n\ud800"), max_size=3)),
)


# H5
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=anything, value=anything)
@example(message="half a pair: \ud800", value=b"\xff")
@example(message="half a pair: \ud800", value=float("inf"))
@example(message="not a number", value=[float("nan"), float("-inf")])
def test_h5_every_log_line_is_one_json_object(
    capfd: pytest.CaptureFixture[str], message: object, value: object
) -> None:
    lines = configured(capfd)
    logger.error("%s", message, extra={"value": value})
    text = lines.text()
    assert text.endswith("\n")
    assert text.count("\n") == 1

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    line = json.loads(text, parse_constant=no_constant)
    assert list(line)[:4] == ["timestamp", "level", "message", "service"]
    assert "value" in line


# H5, H7
def test_h5_h7_lower_levels_are_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    lines = configured(capfd, level="WARNING")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
        logger.log(level, "a line")
    assert [line["level"] for line in lines.parsed()] == ["WARNING", "CRITICAL"]


def test_lines_of_libraries_that_repeat_ours_are_not_logged(
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = configured(capfd)
    logging.getLogger("aiormq.connection").error("lost")
    logging.getLogger("aiohttp.access").info("GET /metrics")
    assert lines.text() == ""


# H7
def test_h7_the_text_format_is_readable(capfd: pytest.CaptureFixture[str]) -> None:
    lines = configured(capfd, form="text")
    logger.info("callback delivered", extra={"callback_id": "id-1", "attempt": 2, "none": None})
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} INFO     callback: callback delivered"
        r"  callback_id=id-1  attempt=2\n",
        lines.text(),
    )
    try:
        int("x")
    except ValueError:
        logger.exception("it broke", extra={"callback_id": "id-1"})
    first, *rest = lines.text().splitlines()
    assert first.endswith("callback: it broke  callback_id=id-1")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1].startswith("ValueError: invalid literal")


# A value must not write a second line, or control the terminal.
def test_h7_the_text_format_escapes_control_characters(capfd: pytest.CaptureFixture[str]) -> None:
    lines = configured(capfd, form="text")
    logger.info("refused: %s", "a\nb\x1b[2J", extra={"reason": "c\r\nd\x9b31m"})
    assert lines.text().endswith("callback: refused: a\\nb\\x1b[2J  reason=c\\r\\nd\\x9b31m\n")
    error = ValueError("first\n\x1b]52;c;eA==\x07")
    logger.error("it broke", exc_info=error)
    assert lines.text().endswith("ValueError: first\n\\x1b]52;c;eA==\\x07\n")


def record(number: int) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "", 0, f"{number:06} {'x' * 300}", None, None)


def dropped() -> float:
    return REGISTRY.get_sample_value("ringback_log_lines_dropped_total") or 0.0


def test_finding_b20_a_stalled_reader_of_the_log_does_not_stop_the_process() -> None:
    reader, writer = os.pipe()
    handler = NonBlockingHandler(writer)
    before = dropped()
    for number in range(5_000):  # 1.5 MB; a pipe takes 64 kB
        handler.emit(record(number))
    with os.fdopen(reader, "rb") as log:
        read = [log.readline() for _ in range(5_000)]
        assert [int(line[:6]) for line in read] == list(range(5_000))
        handler.flush()
        handler.emit(record(7))
        assert log.readline() == read[7]
    assert dropped() == before
    os.close(writer)


def test_finding_b20_lines_beyond_the_limit_are_dropped_and_counted() -> None:
    reader, writer = os.pipe()
    handler = NonBlockingHandler(writer, max_waiting=100_000)
    before = dropped()
    for number in range(1_000):
        handler.emit(record(number))
    lost = int(dropped() - before)
    assert 300 < lost < 700
    with os.fdopen(reader, "rb") as log:
        read = [log.readline() for _ in range(1_000 - lost)]
    # Those that fit are whole, and in their order.
    numbers = [int(line[:6]) for line in read]
    assert numbers == sorted(set(numbers))
    handler.flush()
    handler.emit(record(0))  # the reader has gone
    assert dropped() - before == lost + 1
    os.close(writer)


def test_finding_b20_a_stalled_reader_delays_the_exit_only_briefly() -> None:
    reader, writer = os.pipe()
    handler = NonBlockingHandler(writer)
    for number in range(1_000):
        handler.emit(record(number))
    handler.flush()  # returns, although nothing is read
    os.close(reader)
    handler.flush()
    os.close(writer)


def test_finding_b20_waiting_lines_are_flushed_at_exit() -> None:
    program = (
        "import logging, sys; from shared.process import logs;"
        " logs.configure('callback', level='INFO', form='json');"
        " [logging.info('%s', 'x' * 300) for _ in range(1000)]; raise SystemExit(3)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        time.sleep(0.3)  # the pipe is full by then, or fills while it is read
        lines = process.stderr.read().splitlines()
    assert len(lines) == 1000
    assert all(json.loads(line)["service"] == "callback" for line in lines)
