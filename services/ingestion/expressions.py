"""What rules take from an event: Jinja expressions that can reach nothing but the event's JSON.

No statements, no calls, no Python attributes, a chosen set of filters. What is left works in time
and space that grow with the event and the expression; a bound on time ends what does not.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from jinja2 import TemplateSyntaxError, Undefined, nodes
from jinja2.environment import Template
from jinja2.meta import find_undeclared_variables

from shared.templating.sandbox import JsonEnvironment
from shared.templating.time_limit import TimeLimit

# Seconds of this process's time: a thousand times what an expression over a full event takes.
LONGEST: Final = 0.2
_FORBIDDEN: Final = {
    nodes.Call: "calls are not possible here, filters are: {{ name|lower }}",
    nodes.Pow: "powers are not possible here",
}


class InvalidExpressionError(ValueError):
    """A text of a rule is no expression that can be evaluated here."""


class ExpressionFailedError(Exception):
    """The expression has no value for this event. `field` is where in the command, if known."""

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(f"{field}: {reason}" if field else reason)


_ENVIRONMENT: Final = JsonEnvironment(keep_trailing_newline=True)
_TIME: Final = TimeLimit(LONGEST)


class Expression:
    """A value to be taken from events. In the main thread only, where signals are heard."""

    def __init__(self, node: nodes.Expr) -> None:
        result = nodes.Assign(nodes.Name("result", "store"), node, lineno=1)
        self._template: Template = _ENVIRONMENT.from_string(nodes.Template([result], lineno=1))

    def of(self, event: Mapping[str, Any]) -> Any:
        """Its value for an event, as JSON: dicts, lists, texts, numbers, booleans, None.

        Raises:
            ExpressionFailedError: it has none; or evaluating it takes too long.
        """
        try:
            with _TIME:
                context = self._template.new_context(dict(event))
                for _ in self._template.root_render_func(context):
                    pass
                return _plain(context.vars["result"])
        except ExpressionFailedError:
            raise
        except Exception as error:  # whatever an expression raises is its own fault
            raise ExpressionFailedError(getattr(error, "message", None) or str(error)) from error


def _plain(value: Any, field: str = "") -> Any:
    """The value with lists in the place of Jinja's lazy ones."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{field}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, Undefined):
        raise ExpressionFailedError(str(value._undefined_message), field)  # noqa: SLF001 - Jinja's own word for it
    if isinstance(value, Iterable):
        return [_plain(item, field) for item in value]
    raise ExpressionFailedError("is no JSON", field)


def condition(text: str, names: frozenset[str]) -> Expression:
    """The expression in a text without braces, over variables of these names.

    Raises:
        InvalidExpressionError: it is none.
    """
    node = _parsed("{{ (" + text + ") }}", names)
    if node is None or isinstance(node, nodes.Concat):
        raise InvalidExpressionError("must be one expression, without braces")
    return Expression(node)


def node_of(value: Any, names: frozenset[str]) -> nodes.Expr:
    """The expression for a value of TOML that is no table: texts are templates.

    A text that is one `{{ … }}` and nothing else has that expression's value, whatever its type.

    Raises:
        InvalidExpressionError: a text is no template of expressions.
    """
    if isinstance(value, str):
        return _parsed(value, names)
    if isinstance(value, bool | int | float):
        return nodes.Const(value)
    raise InvalidExpressionError("dates are written as texts")


def _parsed(text: str, names: frozenset[str]) -> nodes.Expr:
    try:
        template = _ENVIRONMENT.parse(text)
        unknown = find_undeclared_variables(template) - names
    except TemplateSyntaxError as error:
        raise InvalidExpressionError(error.message or "is no expression") from None
    except RecursionError:
        raise InvalidExpressionError("is nested too deeply") from None
    for kind, why in _FORBIDDEN.items():
        if template.find(kind) is not None:
            raise InvalidExpressionError(why)
    if unknown:
        raise InvalidExpressionError(
            f"there is no {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}"
        )
    parts: list[nodes.Expr] = []
    for statement in template.body:
        if not isinstance(statement, nodes.Output):
            raise InvalidExpressionError("only {{ … }} can stand here, no {% … %}")
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
