"""The Jinja expressions of rules. They can access only the event's JSON.

Statements, calls and Python attributes are not available, and only safe filters are. Evaluation
takes time and memory in proportion to the event and the expression. A timeout stops slow ones.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from jinja2 import TemplateSyntaxError, Undefined, nodes
from jinja2.environment import Template
from jinja2.meta import find_undeclared_variables

from shared.templating.sandbox import JsonEnvironment
from shared.templating.time_limit import TimeLimit

# Seconds of CPU time: a thousand times the need of an expression over a full event.
EVALUATION_TIMEOUT: Final = 0.2
_FORBIDDEN: Final = {
    nodes.Call: "calls are not allowed; use a filter: {{ name|lower }}",
    nodes.Pow: "powers are not allowed",
}


class InvalidExpressionError(ValueError):
    """A text in a rule is not a valid expression."""


class ExpressionFailedError(Exception):
    """The expression has no value for this event. `field` is its place in the command, if known."""

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(f"{field}: {reason}" if field else reason)


_ENVIRONMENT: Final = JsonEnvironment(keep_trailing_newline=True)
_LIMIT: Final = TimeLimit(EVALUATION_TIMEOUT)


class Expression:
    """A compiled expression. It works in the main thread only, because the timeout is a signal."""

    def __init__(self, node: nodes.Expr) -> None:
        result = nodes.Assign(nodes.Name("result", "store"), node, lineno=1)
        self._template: Template = _ENVIRONMENT.from_string(nodes.Template([result], lineno=1))

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Return its value for an event as JSON: dict, list, text, number, boolean or None.

        Raises:
            ExpressionFailedError: it has no value, or the evaluation took too long.
        """
        _ENVIRONMENT.meter.restart()
        try:
            with _LIMIT:
                context = self._template.new_context(dict(values))
                for _ in self._template.root_render_func(context):
                    pass
                return _as_json(context.vars["result"])
        except ExpressionFailedError:
            raise
        except Exception as error:  # an expression can raise anything
            raise ExpressionFailedError(getattr(error, "message", None) or str(error)) from error


def _as_json(value: Any, field: str = "") -> Any:
    """Replace Jinja's lazy lists in the value by lists."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _as_json(item, f"{field}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, Undefined):
        raise ExpressionFailedError(str(value._undefined_message), field)  # noqa: SLF001 - Jinja's own message
    if isinstance(value, Iterable):
        return [_as_json(item, field) for item in value]
    raise ExpressionFailedError("is not JSON", field)


def compile_condition(text: str, names: frozenset[str]) -> Expression:
    """Compile an expression without braces, over variables with these names.

    Raises:
        InvalidExpressionError: the text is not one expression.
    """
    node = _parse("{{ (" + text + ") }}", names)
    if node is None or isinstance(node, nodes.Concat):
        raise InvalidExpressionError("must be one expression, without braces")
    return Expression(node)


def parse_value(value: Any, names: frozenset[str]) -> nodes.Expr:
    """Parse a TOML value that is not a table; a text is a template of expressions.

    A text that is exactly one `{{ … }}` has the value of that expression, with its type.

    Raises:
        InvalidExpressionError: a text is not a valid template.
    """
    if isinstance(value, str):
        return _parse(value, names)
    if isinstance(value, bool | int | float):
        return nodes.Const(value)
    raise InvalidExpressionError("a date must be a text")


def _parse(text: str, names: frozenset[str]) -> nodes.Expr:
    try:
        template = _ENVIRONMENT.parse(text)
        unknown = find_undeclared_variables(template) - names
    except TemplateSyntaxError as error:
        raise InvalidExpressionError(error.message or "is not an expression") from None
    except RecursionError:
        raise InvalidExpressionError("is nested too deeply") from None
    for kind, reason in _FORBIDDEN.items():
        if template.find(kind) is not None:
            raise InvalidExpressionError(reason)
    if unknown:
        raise InvalidExpressionError(
            f"unknown variable {', '.join(sorted(unknown))}; use {', '.join(sorted(names))}"
        )
    parts: list[nodes.Expr] = []
    for statement in template.body:
        if not isinstance(statement, nodes.Output):
            raise InvalidExpressionError("only {{ … }} is allowed, not {% … %}")
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
