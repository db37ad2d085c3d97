"""Reads the fields of forms and filters. Errors are collected, so one page shows all of them."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from multidict import MultiMapping
from pydantic_core import from_json

from services.console.formatting import parse_time
from shared.contracts.requests import FieldError
from shared.http.problem import ProblemError

N = TypeVar("N", int, float)


class FormReader:
    """Reads one form, or the filter in a URL. Times without an offset are in `zone`.

    An empty field is None.

    `errors` has what is wrong so far.
    """

    def __init__(self, fields: MultiMapping[Any], zone: ZoneInfo) -> None:
        self._fields = fields
        self._zone = zone
        self.errors: list[FieldError] = []

    def text(self, name: str) -> str | None:
        """Return a text without surrounding spaces."""
        return self.raw(name).strip() or None

    def raw(self, name: str) -> str:
        """Return a text as it was typed."""
        value = self._fields.get(name, "")
        # Browsers send line breaks as CRLF.
        return value.replace("\r\n", "\n") if isinstance(value, str) else ""

    def given(self, *names: str) -> dict[str, str]:
        """Return the given texts that are not empty."""
        return {name: text for name in names if (text := self.text(name)) is not None}

    def has(self, name: str) -> bool:
        """Return whether a box is checked."""
        return name in self._fields

    def words(self, name: str) -> list[str]:
        """Return the words of a field, which commas or white space separate."""
        return self.raw(name).replace(",", " ").split()

    def lines(self, name: str) -> list[str]:
        """Return the lines of a field that are not empty."""
        return [line.strip() for line in self.raw(name).splitlines() if line.strip()]

    def time(self, name: str) -> str | None:
        """Return a time in UTC."""
        text = self.text(name)
        if text is None:
            return None
        try:
            at = datetime.fromisoformat(text)
            at = at.replace(tzinfo=self._zone) if at.tzinfo is None else at
            return at.astimezone(UTC).isoformat()
        except (ValueError, OverflowError):
            self.refuse(name, "must be a time, such as 2026-11-20T15:00")
            return None

    def times(self, *names: str) -> dict[str, str]:
        """Return the given times that are not empty."""
        return {name: at for name in names if (at := self.time(name)) is not None}

    def whole(self, name: str) -> int | None:
        """Return a whole number."""
        return self._number(name, int)

    def number(self, name: str) -> float | None:
        """Return a number."""
        return self._number(name, float)

    def json(self, name: str) -> Any:
        """Return a JSON value."""
        text = self.text(name)
        if text is None:
            return None
        try:
            return from_json(text, allow_inf_nan=False)
        except ValueError as error:
            self.refuse(name, f"is not valid JSON: {error}")
            return None

    def refuse(self, name: str, message: str) -> None:
        """Note that a field is wrong."""
        self.errors.append(FieldError(field=name, message=message))

    def check(self) -> None:
        """Raise the problem of the wrong fields, if there are any.

        Raises:
            ProblemError: 422, some fields are wrong.
        """
        if self.errors:
            raise ProblemError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "invalid",
                "Some fields are not valid.",
                errors=self.errors,
            )

    def _number(self, name: str, convert: Callable[[str], N]) -> N | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            return convert(text)
        except ValueError:
            self.refuse(name, "must be a number, such as 100")
            return None


def is_correctable(problem: ProblemError) -> bool:
    """Return whether the page of the form should be shown again, with the errors."""
    return problem.status in (HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.CONFLICT)


def errors_of(problem: ProblemError) -> Sequence[FieldError]:
    """Return the wrong fields of a problem; the problem itself if it names none."""
    return problem.errors or [FieldError(field="", message=str(problem))]


def input_time(at: datetime | str | None, zone: ZoneInfo) -> str:
    """Return a time as the value of an `<input type="datetime-local">`.

    One without an offset is in the zone already. A text that is not a time becomes empty.
    """
    if at is None:
        return ""
    try:
        time = parse_time(at)
        time = time if time.tzinfo is None else time.astimezone(zone).replace(tzinfo=None)
        return time.isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return ""
