"""Durations in configuration and messages: `120 sec`, `1 day`."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, WithJsonSchema

_UNITS: Final = {"sec": 1, "min": 60, "hour": 3600, "day": 86_400}
_PATTERN: Final = r"^[1-9][0-9]{0,6} (sec|min|hour|day)s?$"
_FORM: Final = re.compile(_PATTERN.strip("^$"))
# Seconds. Ten years with leap days; a longer duration is a mistake in the unit.
MAX_DURATION: Final = 3653 * 86_400


def seconds(text: str) -> int:
    """Convert a duration to seconds.

    Raises:
        ValueError: it does not have the form `120 sec`, or is longer than ten years.
    """
    if not _FORM.fullmatch(text):
        raise ValueError(
            "must be a whole number above 0, a space and sec, min, hour or day, such as '120 sec'"
        )
    number, unit = text.split(" ")
    total = int(number) * _UNITS[unit.removesuffix("s")]
    if total > MAX_DURATION:
        raise ValueError("is longer than ten years")
    return total


def _checked(text: str) -> str:
    seconds(text)
    return text


# Stays a text; `seconds` converts it.
Duration = Annotated[
    str,
    AfterValidator(_checked),
    WithJsonSchema({"type": "string", "pattern": _PATTERN, "examples": ["120 sec"]}),
]
