"""Validates the JSON of clients, so that it can be stored, and lists the errors of a model."""

import re
from collections.abc import Sequence
from json import JSONEncoder
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import PydanticCustomError, from_json

from shared.contracts.requests import FieldError

# Levels of nesting. Parsers stop at 200, and messages wrap the JSON in some more levels.
MAX_DEPTH: Final = 150
# Errors in a list. A batch of 8 MB can have 900,000 wrong fields in 1,000 items, and listing them
# would take six seconds.
MAX_FIELD_ERRORS: Final = 100
# Characters of a field's path in an error: the body names the fields.
MAX_PATH_LENGTH: Final = 500
_WRAPPER_LEVELS: Final = 200 - MAX_DEPTH - 1

json_text: Final = JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# The names that pydantic adds to a path for a type of a union.
_UNION_MEMBER: Final = re.compile(r"constrained-str|list\[.*\]")
# The key in an error's context of the errors that one validator found in several fields.
_FIELDS: Final = "fields"


def fields_error(faults: Sequence[tuple[str, str]]) -> PydanticCustomError:
    """Return the error of a validator for these fields: pairs of path and message."""
    text = "; ".join(f"{field}: {message}" for field, message in faults)
    return PydanticCustomError("fields", "{text}", {"text": text, _FIELDS: list(faults)})


def field_errors(error: ValidationError, *, within: str = "") -> tuple[FieldError, ...]:
    """Return the path and message of every wrong field, without values.

    More than MAX_FIELD_ERRORS errors are only counted, and long paths are cut.

    within: a field to remove from the beginning of the paths.
    """
    count = error.error_count()
    if count > MAX_FIELD_ERRORS:
        message = f"{count} fields are invalid; at most {MAX_FIELD_ERRORS} are listed"
        return (FieldError(field="", message=message),)
    found = []
    for fault in error.errors(include_url=False, include_input=False):
        path = [str(part) for part in fault["loc"] if not _UNION_MEMBER.fullmatch(str(part))]
        if path[:1] == [within]:
            path = path[1:]
        inner = fault.get("ctx", {}).get(_FIELDS)
        if inner is None:
            message = fault["msg"].removeprefix("Value error, ")
            found.append(FieldError(field=_joined(path), message=message))
        else:
            found += [
                FieldError(field=_joined([*path, field] if field else path), message=message)
                for field, message in inner
            ]
    return tuple(found)


def _joined(path: Sequence[str]) -> str:
    text = ".".join(path)
    return text if len(text) <= MAX_PATH_LENGTH else text[:MAX_PATH_LENGTH] + "…"


def check_context(value: Any) -> Any:
    """Validate a context, and parse it if it is a text that begins like a JSON object or list.

    Raises:
        ValueError: it contains NaN, infinity or the character NUL, is nested too deeply, or begins
            like JSON but is not valid.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError as error:
            raise ValueError(f"begins like JSON, but is not valid: {error}") from None
    try:
        text = json_text(value)
    except (ValueError, RecursionError):
        raise ValueError("contains a number that JSON cannot represent") from None
    if "\\u0000" in text and _NUL.search(text):
        raise ValueError("contains the character NUL")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        try:
            from_json("[" * _WRAPPER_LEVELS + text + "]" * _WRAPPER_LEVELS)
        except ValueError:
            raise ValueError(f"is nested deeper than {MAX_DEPTH} levels") from None
    return value
