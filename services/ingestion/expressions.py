"""What rules take from an event: Jinja expressions that can reach nothing but the event's JSON.

No statements, no calls, no Python attributes, a chosen set of filters. What is left works in time
and space that grow with the event and the expression; a bound on time ends what does not.
"""

import signal
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, nodes
from jinja2.environment import Template
from jinja2.filters import FILTERS
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.contracts.context import json_text

# Seconds of this process's time: a thousand times what an expression over a full event takes.
LONGEST: Final = 0.2
# Characters of a result as JSON, and of a text on the way to it; what no consumer of ours takes.
LARGEST: Final = 1_048_576

# Those of Jinja's own whose time and result grow with their input alone.
_HARMLESS: Final = (
    *("abs", "capitalize", "default", "dictsort", "first", "float", "int", "items", "last"),
    *("length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse"),
    *("select", "selectattr", "sort", "title", "trim", "unique", "upper", "urlencode"),
)
_FORBIDDEN: Final = {
    nodes.Call: "calls are not possible here, filters are: {{ name|lower }}",
    nodes.Pow: "powers are not possible here",
}


class WrongExpression(ValueError):  # noqa: N818 - what is found
    """A text of a rule is no expression that can be evaluated here."""


class Failed(Exception):  # noqa: N818 - what happened
    """The expression has no value for this event. `field` is where in the command, if known."""

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(f"{field}: {reason}" if field else reason)


def _text(value: Any) -> str:
    """A value as part of a text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json_text(value)
    if isinstance(value, Undefined):
        return str(value)  # raises, and says what is missing
    raise TypeError("null, a list or an object can't be part of a text")


def _join(values: Iterable[Any], separator: str = "") -> str:
    parts = [_text(value) for value in values]
    if sum(map(len, parts)) + len(parts) * len(separator) > LARGEST:
        raise ValueError(f"a text would be longer than {LARGEST} characters")
    return separator.join(parts)


class _Environment(ImmutableSandboxedEnvironment):
    """Values are JSON: a dot reads a field of an object, never an attribute of Python's."""

    intercepted_binops = frozenset(("*", "%"))

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Mapping | list | str):
            try:
                return obj[argument]
            except (LookupError, TypeError):
                return self.undefined(hint=f"there is no field {argument!r}")
        if isinstance(obj, Undefined):
            return obj[argument]  # raises, and says what is missing
        return self.undefined(hint=f"there is no field {argument!r}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not all(isinstance(operand, int | float) for operand in (left, right)):
            raise TypeError(f"{operator} is for numbers only")
        return super().call_binop(context, operator, left, right)


_ENVIRONMENT: Final = _Environment(
    undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
)
_ENVIRONMENT.globals.clear()
_ENVIRONMENT.filters = {name: FILTERS[name] for name in _HARMLESS} | {
    "join": _join,
    "string": _text,
    "sum": sum,
}


class _Watch:
    """Ends what takes too long, by a signal after so much time of this process."""

    def __init__(self) -> None:
        self._armed = False

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGVTALRM) != self._ring:
            signal.signal(signal.SIGVTALRM, self._ring)
        self._armed = True
        signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)

    def __exit__(self, *_: object) -> None:
        self._armed = False  # first: the signal may be on its way
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _ring(self, _: int, __: FrameType | None) -> None:
        if self._armed:
            raise Failed(f"takes longer than {LONGEST:g} s")


_WATCH: Final = _Watch()


class Expression:
    """A value to be taken from events. In the main thread only, where signals are heard."""

    def __init__(self, node: nodes.Expr) -> None:
        result = nodes.Assign(nodes.Name("result", "store"), node, lineno=1)
        self._template: Template = _ENVIRONMENT.from_string(nodes.Template([result], lineno=1))

    def of(self, event: Mapping[str, Any]) -> Any:
        """Its value for an event, as JSON: dicts, lists, texts, numbers, booleans, None.

        Raises:
            Failed: it has none; or evaluating it takes too long.
        """
        try:
            with _WATCH:
                context = self._template.new_context(dict(event))
                for _ in self._template.root_render_func(context):
                    pass
                return _plain(context.vars["result"])
        except Failed:
            raise
        except Exception as error:  # whatever an expression raises is its own fault
            raise Failed(getattr(error, "message", None) or str(error)) from error


def _plain(value: Any, field: str = "") -> Any:
    """The value with lists in the place of Jinja's lazy ones."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{field}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, Undefined):
        raise Failed(str(value._undefined_message), field)  # noqa: SLF001 - Jinja's own word for it
    if isinstance(value, Iterable):
        return [_plain(item, field) for item in value]
    raise Failed("is no JSON", field)


def condition(text: str, names: frozenset[str]) -> Expression:
    """The expression in a text without braces, over variables of these names.

    Raises:
        WrongExpression: it is none.
    """
    node = _parsed("{{ (" + text + ") }}", names)
    if node is None or isinstance(node, nodes.Concat):
        raise WrongExpression("must be one expression, without braces")
    return Expression(node)


def node_of(value: Any, names: frozenset[str]) -> nodes.Expr:
    """The expression for a value of TOML that is no table: texts are templates.

    A text that is one `{{ … }}` and nothing else has that expression's value, whatever its type.

    Raises:
        WrongExpression: a text is no template of expressions.
    """
    if isinstance(value, str):
        return _parsed(value, names)
    if isinstance(value, bool | int | float):
        return nodes.Const(value)
    raise WrongExpression("dates are written as texts")


def _parsed(text: str, names: frozenset[str]) -> nodes.Expr:
    try:
        template = _ENVIRONMENT.parse(text)
        unknown = find_undeclared_variables(template) - names
    except TemplateSyntaxError as error:
        raise WrongExpression(error.message or "is no expression") from None
    except RecursionError:
        raise WrongExpression("is nested too deeply") from None
    for kind, why in _FORBIDDEN.items():
        if template.find(kind) is not None:
            raise WrongExpression(why)
    if unknown:
        raise WrongExpression(
            f"there is no {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}"
        )
    parts: list[nodes.Expr] = []
    for statement in template.body:
        if not isinstance(statement, nodes.Output):
            raise WrongExpression("only {{ … }} can stand here, no {% … %}")
        parts += statement.nodes
    literal = [isinstance(part, nodes.TemplateData) for part in parts]
    exact: list[nodes.Expr] = [
        nodes.Const(part.data) if isinstance(part, nodes.TemplateData) else part for part in parts
    ]
    if len(exact) <= 1:
        return exact[0] if exact else nodes.Const("")
    return nodes.Concat(
        [
            part if fixed else nodes.Filter(part, "string", [], [], None, None)
            for part, fixed in zip(exact, literal, strict=True)
        ]
    )
