"""Jinja over JSON: expressions can only use the values passed to them.

Python attributes are not accessible, and only some filters are available. Time and memory depend
only on the size of the values and of the expression.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from jinja2 import StrictUndefined, Undefined
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.contracts.context import json_text

# Characters of an intermediate text; no consumer of ours accepts a larger one.
MAX_SIZE: Final = 1_048_576
# Bits of an integer. Multiplying larger ones would take more and more time.
_MAX_BITS: Final = 4_096

# Jinja's filters whose time and result depend only on the size of their input.
_SAFE_FILTERS: Final = (
    *("abs", "capitalize", "default", "dictsort", "first", "float", "int", "items", "last"),
    *("length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse"),
    *("select", "selectattr", "sort", "title", "trim", "unique", "upper", "urlencode"),
)
# `dict` comes first: this check is faster for it than for other mappings.
_CONTAINERS: Final = (dict, list, str, Mapping)


class TooLargeError(ValueError):
    """A result is too large. The text contains no value."""


def text(value: Any) -> str:
    """Return a value as part of a text.

    Raises:
        TypeError: it is null, a list or an object.
        UndefinedError: it does not exist.
    """
    if isinstance(value, str):
        return value
    if type(value) is int:  # not a boolean; the most frequent type besides texts
        return str(value)
    if isinstance(value, bool | float):
        return json_text(value)
    if isinstance(value, Undefined):
        return str(value)  # raises an error that names the missing value
    raise TypeError("null, a list or an object cannot be part of a text")


def join(values: Iterable[Any], separator: str = "") -> str:
    """Join values; the filter `join` with a size limit."""
    parts = [text(value) for value in values]
    if sum(map(len, parts)) + len(parts) * len(separator) > MAX_SIZE:
        raise TooLargeError(f"a text would be longer than {MAX_SIZE} characters")
    return separator.join(parts)


class JsonEnvironment(ImmutableSandboxedEnvironment):
    """A Jinja sandbox for JSON. A dot reads a field of an object, never a Python attribute."""

    intercepted_binops = frozenset(("*", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False, **options)
        self.globals.clear()
        self.filters = {name: FILTERS[name] for name in _SAFE_FILTERS} | {
            "join": join,
            "string": text,
            "sum": sum,
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return a field of an object."""
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return a field of an object, or an item of a list or text."""
        if isinstance(obj, _CONTAINERS):
            try:
                return obj[argument]
            except (LookupError, TypeError):
                pass
        elif isinstance(obj, Undefined):
            return obj[argument]  # raises an error that names the missing value
        return self.undefined(hint=f"the field {argument!r} does not exist")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator to numbers only: with texts and lists the result could be huge."""
        for operand in (left, right):
            if not isinstance(operand, int | float):
                raise TypeError(f"{operator} is for numbers only")
            if isinstance(operand, int) and operand.bit_length() > _MAX_BITS:
                raise TooLargeError("a number is too large to calculate with")
        return super().call_binop(context, operator, left, right)
