"""From the fields of filters and forms to the bodies of requests to services. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from zoneinfo import ZoneInfo

from shared.contracts.requests import FieldError
from shared.http.problem import ProblemError


def given(fields: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Return those of these fields that are not empty, without surrounding spaces."""
    texts = {name: fields.get(name) for name in names}
    return {
        name: text.strip() for name, text in texts.items() if isinstance(text, str) and text.strip()
    }


def times(fields: Mapping[str, Any], zone: ZoneInfo, *names: str) -> dict[str, str]:
    """Return these times in UTC, for those fields that are not empty.

    Raises:
        ProblemError: 422, one of them is not a time.
    """
    return {name: time(name, text, zone) for name, text in given(fields, *names).items()}


def time(name: str, text: str, zone: ZoneInfo) -> str:
    """Return a time in UTC. One without an offset is in the zone of the viewer.

    Raises:
        ProblemError: 422, the text is not a time.
    """
    try:
        at = datetime.fromisoformat(text)
        at = at.replace(tzinfo=zone) if at.tzinfo is None else at
        return at.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise refused(name, "Must be a time, such as 2026-11-20T15:00") from None


def input_time(text: str | None, zone: ZoneInfo) -> str:
    """Return the value of an `<input type="datetime-local">` for a time in the URL."""
    if not text:
        return ""
    try:
        at = datetime.fromisoformat(text)
        at = at if at.tzinfo is None else at.astimezone(zone).replace(tzinfo=None)
        return at.isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return ""


def number(name: str, text: str) -> float:
    """Return a number.

    Raises:
        ProblemError: 422, the text is not a number.
    """
    try:
        return float(text)
    except ValueError:
        raise refused(name, "Must be a number, such as 100") from None


def refused(name: str, message: str) -> ProblemError:
    """Return the problem 422 of one field."""
    return ProblemError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid",
        "Correct the field.",
        errors=[FieldError(field=name, message=message)],
    )
