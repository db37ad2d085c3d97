"""H5: each log line is one JSON object, whatever its values, or readable text."""

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.process import logs

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

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def text(self) -> str:
        out, err = self._capsys.readouterr()
        assert out == ""
        return err

    def parsed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


def configured(
    capsys: pytest.CaptureFixture[str], level: str = "INFO", form: str = "json"
) -> Lines:
    """Log as a service does. Call it in the test: pytest closes the stream of a fixture."""
    logs.configure("callback", level=level, form=form)
    return Lines(capsys)


# H5
def test_h5_a_line_has_time_level_message_service_and_context(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = configured(capsys)
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
    capsys: pytest.CaptureFixture[str], created: float
) -> None:
    lines = configured(capsys)
    record = logging.LogRecord("x", logging.INFO, "", 0, "now", None, None)
    record.created, record.msecs = created, (created % 1) * 1000
    logger.handle(record)
    [line] = lines.parsed()
    logged_at = datetime.fromisoformat(line["timestamp"])
    assert logged_at.tzinfo == UTC
    assert 0 <= created - logged_at.timestamp() < 0.002


# H5
def test_h5_an_exception_is_on_the_line_of_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys)
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
    capsys: pytest.CaptureFixture[str], message: object, value: object
) -> None:
    lines = configured(capsys)
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
def test_h5_h7_lower_levels_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys, level="WARNING")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
        logger.log(level, "a line")
    assert [line["level"] for line in lines.parsed()] == ["WARNING", "CRITICAL"]


def test_lines_of_libraries_that_repeat_ours_are_not_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = configured(capsys)
    logging.getLogger("aiormq.connection").error("lost")
    logging.getLogger("aiohttp.access").info("GET /metrics")
    assert lines.text() == ""


# H7
def test_h7_the_text_format_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys, form="text")
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
def test_h7_the_text_format_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys, form="text")
    logger.info("refused: %s", "a\nb\x1b[2J", extra={"reason": "c\r\nd\x9b31m"})
    assert lines.text().endswith("callback: refused: a\\nb\\x1b[2J  reason=c\\r\\nd\\x9b31m\n")
    error = ValueError("first\n\x1b]52;c;eA==\x07")
    logger.error("it broke", exc_info=error)
    assert lines.text().endswith("ValueError: first\n\\x1b]52;c;eA==\\x07\n")
