"""Filters and tests for untrusted expressions: Jinja's, with limits on what they create.

Jinja's filters convert lists to texts, copy whole inputs, and add or format anything. Here they
accept what they are meant for, and a meter counts the bytes that they create.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from jinja2 import Environment, Undefined, pass_environment
from jinja2.filters import FILTERS as _FILTERS
from jinja2.tests import TESTS as _TESTS

from shared.contracts.context import json_text
from shared.templating.meter import MAX_SIZE, Meter, TooLargeError

_Function = Callable[..., Any]
_JINJA_FILTERS: Final[Mapping[str, Any]] = _FILTERS
_JINJA_TESTS: Final[Mapping[str, Any]] = _TESTS

# Bits of an integer. Multiplying larger ones would take more and more time.
MAX_BITS: Final = 4_096

# Jinja's filters that return a number, an iterator or a part of their input.
_SAFE_FILTERS: Final = (
    *("abs", "default", "first", "float", "items", "last", "length", "map", "max", "min"),
    *("reject", "rejectattr", "select", "selectattr"),
)
# Bytes that filters of texts need for each character, for characters of four bytes.
_TEXT_FILTERS: Final = {
    **dict.fromkeys(("capitalize", "lower", "upper"), 12),  # "ΐ" becomes three characters
    "title": 80,  # splits the text into words
    "trim": 4,
    "urlencode": 24,
}
# Bytes of a character as a text of its own.
_CHARACTER: Final = 80


def meter_of(environment: Environment) -> Meter:
    """Return the meter of an environment."""
    meter: Meter = environment.meter  # type: ignore[attr-defined]
    return meter


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


def check_number(value: Any, use: str) -> None:
    """Check that a value is a number that one can calculate with.

    Raises:
        TypeError: it is not a number.
        TooLargeError: it is too large.
    """
    if isinstance(value, Undefined):
        text(value)  # raises an error that names the missing value
    if not isinstance(value, int | float):
        raise TypeError(f"{use} is for numbers only")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TooLargeError("a number is too large to calculate with")


@pass_environment
def _join(environment: Environment, values: Iterable[Any], separator: str = "") -> str:
    meter = meter_of(environment)
    if isinstance(values, str):
        meter.count(len(values) * _CHARACTER)
    parts = [text(value) for value in values]
    if sum(map(len, parts)) + len(parts) * len(separator) > MAX_SIZE:
        raise TooLargeError(f"a text would be longer than {MAX_SIZE} characters")
    joined = separator.join(parts)
    meter.count(joined.__sizeof__())
    return joined


def _sum(values: Iterable[Any], start: Any = 0) -> Any:
    check_number(start, "sum")
    for value in values:
        if not isinstance(value, int | float):
            check_number(value, "sum")
        start += value
    return start


def _int(value: Any, default: Any = 0, base: int = 10) -> Any:
    number = _JINJA_FILTERS["int"](value, default, base)
    if isinstance(number, int):  # the default may be anything
        check_number(number, "int")
    return number


@pass_environment
def _string(environment: Environment, value: Any) -> str:
    result = text(value)
    meter_of(environment).count(result.__sizeof__())
    return result


@pass_environment
def _list(environment: Environment, value: Any) -> list[Any]:
    meter = meter_of(environment)
    if isinstance(value, str):
        meter.count(len(value) * _CHARACTER)
    items = list(value)
    meter.count_value(items)
    return items


@pass_environment
def _reverse(environment: Environment, value: Any) -> Any:
    if isinstance(value, str):
        meter_of(environment).count(value.__sizeof__())
        return value[::-1]
    return _list(environment, value)[::-1]


@pass_environment
def _sort(environment: Environment, value: Any, *args: Any, **options: Any) -> Any:
    return _JINJA_FILTERS["sort"](environment, _list(environment, value), *args, **options)


@pass_environment
def _unique(environment: Environment, value: Any, *args: Any, **options: Any) -> Any:
    return _JINJA_FILTERS["unique"](environment, _list(environment, value), *args, **options)


@pass_environment
def _dictsort(environment: Environment, value: Any, *args: Any, **options: Any) -> Any:
    meter_of(environment).count_value(value)
    return _JINJA_FILTERS["dictsort"](value, *args, **options)


def _text_filter(name: str, bytes_per_character: int) -> _Function:
    jinja_filter = _JINJA_FILTERS[name]

    @pass_environment
    def apply(environment: Environment, value: Any, *args: Any) -> str:
        value = text(value)
        meter_of(environment).count(len(value) * bytes_per_character)
        result: str = jinja_filter(value, *args)
        return result

    return apply


def _number_test(name: str) -> _Function:
    """Return a test of Jinja for numbers only: `%` of a text would format it."""
    jinja_test = _JINJA_TESTS[name]

    def apply(value: Any, *args: Any) -> bool:
        check_number(value, name)
        result: bool = jinja_test(value, *args)
        return result

    return apply


FILTERS: Final[Mapping[str, _Function]] = {
    **{name: _JINJA_FILTERS[name] for name in _SAFE_FILTERS},
    **{name: _text_filter(name, size) for name, size in _TEXT_FILTERS.items()},
    "dictsort": _dictsort,
    "int": _int,
    "join": _join,
    "list": _list,
    "reverse": _reverse,
    "sort": _sort,
    "string": _string,
    "sum": _sum,
    "unique": _unique,
}
TESTS: Final[Mapping[str, _Function]] = {
    **_JINJA_TESTS,
    **{name: _number_test(name) for name in ("divisibleby", "even", "odd")},
    "lower": lambda value: text(value).islower(),
    "upper": lambda value: text(value).isupper(),
}
