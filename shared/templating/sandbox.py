"""Jinja over JSON: expressions can only use the values passed to them.

Python attributes are not accessible, and only some filters are available. A meter limits the memory
of the values that an expression creates.
"""

from collections.abc import Mapping
from typing import Any, Final

from jinja2 import StrictUndefined, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.templating.filters import FILTERS, TESTS, check_number
from shared.templating.meter import Meter

# `dict` comes first: this check is faster for it than for other mappings.
_CONTAINERS: Final = (dict, list, str, Mapping)


class JsonEnvironment(ImmutableSandboxedEnvironment):
    """A Jinja sandbox for JSON. A dot reads a field of an object, never a Python attribute."""

    intercepted_binops = frozenset(("*", "%"))

    def __init__(self, **options: Any) -> None:
        # Without `optimized`, Jinja evaluates nothing while it compiles.
        super().__init__(undefined=StrictUndefined, autoescape=False, optimized=False, **options)
        self.globals.clear()
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.meter: Final = Meter()

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
            check_number(operand, operator)
        return super().call_binop(context, operator, left, right)
