"""The JSON that a client gives along with an order, checked so that every store takes it."""

import re
from collections.abc import Sequence
from json import JSONEncoder
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import PydanticCustomError, from_json

from shared.contracts.requests import FieldError

# Levels of nesting. Readers stop at 200, and the way to the receiver wraps some around it.
MAX_DEPTH: Final = 150
_ROOM: Final = 200 - MAX_DEPTH - 1

json_text: Final = JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# What pydantic puts into a path for one of several kinds that a field may be of.
_KIND: Final = re.compile(r"constrained-str|list\[.*\]")
# Where faults that one validator found in several fields stand in its error's context.
_FIELDS: Final = "fields"


def faulty(faults: Sequence[tuple[str, str]]) -> PydanticCustomError:
    """The error of a validator that found something wrong in these fields, by their paths."""
    text = "; ".join(f"{field}: {message}" for field, message in faults)
    return PydanticCustomError("fields", "{text}", {"text": text, _FIELDS: list(faults)})


def field_errors(error: ValidationError, *, within: str = "") -> tuple[FieldError, ...]:
    """Every wrong field by its path, no value; `within` is a wrapper's field to leave out."""
    found = []
    for fault in error.errors(include_url=False, include_input=False):
        path = [str(part) for part in fault["loc"] if not _KIND.fullmatch(str(part))]
        if path[:1] == [within]:
            path = path[1:]
        inner = fault.get("ctx", {}).get(_FIELDS)
        if inner is None:
            message = fault["msg"].removeprefix("Value error, ")
            found.append(FieldError(field=".".join(path), message=message))
        else:
            found += [
                FieldError(field=".".join([*path, field]) if field else ".".join(path), message=why)
                for field, why in inner
            ]
    return tuple(found)


def checked_context(value: Any) -> Any:
    """The context, read if it is a text that holds a JSON object or list; any other text stays.

    Raises:
        ValueError: it holds NaN, infinity or the character NUL, is nested too deeply, or begins
            like an object or list and is none.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError as error:
            raise ValueError(f"a text that begins like JSON, but: {error}") from None
    try:
        text = json_text(value)
    except (ValueError, RecursionError):
        raise ValueError("holds a number that JSON does not know") from None
    if "\\u0000" in text and _NUL.search(text):
        raise ValueError("a text holds the character NUL")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        try:
            from_json("[" * _ROOM + text + "]" * _ROOM)
        except ValueError:
            raise ValueError(f"is nested deeper than {MAX_DEPTH} levels") from None
    return value
