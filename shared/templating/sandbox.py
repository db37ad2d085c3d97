"""Jinja over JSON: expressions that reach nothing but the values they are given.

No Python attributes, a chosen set of filters. What is left works in time and space that grow with
the values and the expression.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from jinja2 import StrictUndefined, Undefined
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.contracts.context import json_text

# Characters of a text on the way to a result; what no consumer of ours takes.
MAX_SIZE: Final = 1_048_576
# Bits of a whole number; a product of larger ones takes ever longer.
_WIDEST: Final = 4_096

# Those of Jinja's own whose time and result grow with their input alone.
_HARMLESS: Final = (
    *("abs", "capitalize", "default", "dictsort", "first", "float", "int", "items", "last"),
    *("length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse"),
    *("select", "selectattr", "sort", "title", "trim", "unique", "upper", "urlencode"),
)


# `dict` comes first: this check is faster for it than for other mappings.
_CONTAINERS: Final = (dict, list, str, Mapping)


class TooLargeError(ValueError):
    """A result would be larger than anything of use; the text holds no value."""


def text(value: Any) -> str:
    """A value as part of a text.

    Raises:
        TypeError: null, a list or an object can't be.
        UndefinedError: it is not there.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json_text(value)
    if isinstance(value, Undefined):
        return str(value)  # raises, and says what is missing
    raise TypeError("null, a list or an object can't be part of a text")


def join(values: Iterable[Any], separator: str = "") -> str:
    """The filter `join`, with a bound."""
    parts = [text(value) for value in values]
    if sum(map(len, parts)) + len(parts) * len(separator) > MAX_SIZE:
        raise TooLargeError(f"a text would be longer than {MAX_SIZE} characters")
    return separator.join(parts)


class JsonEnvironment(ImmutableSandboxedEnvironment):
    """Values are JSON: a dot reads a field of an object, never an attribute of Python's."""

    intercepted_binops = frozenset(("*", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False, **options)
        self.globals.clear()
        self.filters = {name: FILTERS[name] for name in _HARMLESS} | {
            "join": join,
            "string": text,
            "sum": sum,
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The field of this name."""
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
        return self.undefined(hint=f"there is no field {argument!r}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator that makes too much of texts and lists."""
        for operand in (left, right):
            if not isinstance(operand, int | float):
                raise TypeError(f"{operator} is for numbers only")
            if isinstance(operand, int) and operand.bit_length() > _WIDEST:
                raise TooLargeError("a number is too large to calculate with")
        return super().call_binop(context, operator, left, right)
