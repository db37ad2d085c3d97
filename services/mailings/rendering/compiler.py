"""Compiles the Jinja of a template.

Each output goes through the filter `_output`, so the caller decides what appears in the text.
In a trial run, `_trial` is true: outputs that mention the recipient are empty, and conditions that
mention the recipient have the value `_truth`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from jinja2 import (
    StrictUndefined,
    TemplateRuntimeError,
    TemplateSyntaxError,
    Undefined,
    nodes,
    pass_context,
    pass_environment,
)
from jinja2.environment import Template
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import safe_range
from jinja2.visitor import NodeTransformer

from shared.templating.filters import text
from shared.templating.sandbox import JsonEnvironment

PER_RECIPIENT: Final = frozenset(("user", "unsubscribe_url"))
# Variables that every template has. The context of a posting cannot contain them.
RESERVED: Final = PER_RECIPIENT | {"product"}

_LOOP: Final = frozenset(
    {"index", "index0", "revindex", "revindex0", "first", "last", "length"}
    | {"previtem", "nextitem", "cycle", "changed"}
)
_STATEMENTS: Final = (nodes.Output, nodes.If, nodes.For, nodes.Assign, nodes.With)
_OPTIONAL: Final = frozenset(("default", "d", "defined", "undefined"))
# Jinja nodes of a template: 600 values with conditions. They compile in half a second.
MAX_NODES: Final = 5_000


class OutputError(Exception):
    """A value cannot be part of a text. The message names the expression, never the value."""


class DependsOnRecipientError(TemplateRuntimeError):
    """A trial run without a recipient reached an expression that needs one."""


# Returns the text that stands for a value. The second argument names its expression.
Write = Callable[[Any, str], str]


class _Environment(JsonEnvironment):
    # Adding texts would bypass the size limit; `~` does not.
    intercepted_binops = JsonEnvironment.intercepted_binops | {"+"}

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True)
        self.globals["range"] = safe_range
        self.filters |= {"default": _default, "d": _default}
        self.filters |= {"_output": _output, "_counted": _counted}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in _LOOP:
            return getattr(obj, attribute)
        return super().getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item. The error does not name a missing key, because it may be a value."""
        found = super().getitem(obj, argument)
        return self.undefined(hint="the item does not exist") if _is_missing(found) else found

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the filter that a template names in an argument, such as `map("lower")`."""
        if name.startswith("_") or name not in self.filters:
            raise TemplateRuntimeError("the filter does not exist")
        return super().call_filter(name, *args, **kwargs)


def _is_missing(value: Any) -> bool:
    return isinstance(value, Undefined)


def _default(value: Any, instead: Any = "", boolean: bool = False) -> Any:  # noqa: FBT001, FBT002 - the signature of Jinja's filter
    """Replace a missing value or null."""
    return instead if value is None or _is_missing(value) or (boolean and not value) else value


@pass_context
def _output(context: Context, value: Any, expression: str) -> str:
    write: Write = context.parent["_write"]
    return write(value, expression)


@pass_environment
def _counted(environment: "_Environment", value: Any) -> Any:
    environment.meter.count_value(value)
    return value


_ENVIRONMENT: Final = _Environment()
# The recipient in a trial run. Any use of it raises DependsOnRecipientError.
_UNKNOWN: Final = StrictUndefined(exc=DependsOnRecipientError)


@dataclass(frozen=True, slots=True)
class CompiledTemplate:
    """The subject and the body of a template, and the variables they use.

    required: variables of the context, and the line of their first use.
    has_conditions: whether a condition mentions the recipient.
    """

    subject: Template
    body: Template
    required: Mapping[str, int]
    optional: frozenset[str]
    has_conditions: bool

    def line_of(self, error: BaseException) -> int | None:
        """Return the line of the template that raised an error."""
        templates = {part.root_render_func.__code__: part for part in (self.subject, self.body)}
        line = None
        traceback = error.__traceback__
        while traceback is not None:
            template = templates.get(traceback.tb_frame.f_code)
            line = template.get_corresponding_lineno(traceback.tb_lineno) if template else line
            traceback = traceback.tb_next
        return line


def compile_template(subject: str, body: str, *, max_nodes: int = MAX_NODES) -> CompiledTemplate:
    """Compile a template whose subject and body have at most `max_nodes` Jinja nodes each.

    Raises:
        TemplateSyntaxError: the text is not valid Jinja, or uses a feature that is not available.
    """
    trees = [_ENVIRONMENT.parse(subject), _ENVIRONMENT.parse(body)]
    used: dict[str, int] = {}
    optional: set[str] = set()
    for tree in trees:
        _check_size(tree, max_nodes)
        _check(tree)
        names = find_undeclared_variables(tree) - RESERVED - set(_ENVIRONMENT.globals)
        for name in tree.find_all(nodes.Name):
            if name.name in names:
                used[name.name] = min(name.lineno, used.get(name.name, name.lineno))
        optional |= {
            use.node.name
            for use in tree.find_all((nodes.Filter, nodes.Test))
            if use.name in _OPTIONAL and isinstance(use.node, nodes.Name)
        }
        _Transformer().visit(tree)
        tree.set_environment(_ENVIRONMENT)
    compiled_subject, compiled_body = (_ENVIRONMENT.from_string(tree) for tree in trees)
    return CompiledTemplate(
        compiled_subject,
        compiled_body,
        {name: line for name, line in used.items() if name not in optional},
        frozenset(used.keys() & optional),
        any(name.name == "_truth" for tree in trees for name in tree.find_all(nodes.Name)),
    )


def rendering_variables(
    context: Mapping[str, Any], *, write: Write, recipient: Any, unsubscribe_url: Any
) -> dict[str, Any]:
    """Return all variables for rendering to a recipient, whose memory is counted from here."""
    _ENVIRONMENT.meter.restart()
    return {
        **_ENVIRONMENT.globals,
        **context,
        "user": recipient,
        "unsubscribe_url": unsubscribe_url,
        "_write": write,
        "_trial": False,
    }


def trial_variables(context: Mapping[str, Any], *, write: Write, truth: bool) -> dict[str, Any]:
    """Return all variables for a trial run."""
    variables = rendering_variables(
        context, write=write, recipient=_UNKNOWN, unsubscribe_url=_UNKNOWN
    )
    return {**variables, "_trial": True, "_truth": truth}


def output_text(value: Any, expression: str) -> str:
    """Return a value as it appears in a text.

    Raises:
        OutputError: the value is missing, null, a list or an object.
        DependsOnRecipientError: it is unknown in a trial run.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return text(value)
    if value is None:
        raise OutputError(f"{expression} is null; use |default(…) to replace it")
    if value is _UNKNOWN:
        raise DependsOnRecipientError
    if _is_missing(value):
        raise OutputError(f"{expression} is missing")
    raise OutputError(f"{expression} is a list or an object and cannot be part of a text")


def _check_size(tree: nodes.Template, max_nodes: int) -> None:
    for node in islice(tree.find_all(nodes.Node), max_nodes, None):
        raise TemplateSyntaxError("has too many values and tags from here", node.lineno)


def _check(tree: nodes.Template) -> None:
    for node in tree.find_all(nodes.Node):
        if isinstance(node, nodes.Stmt) and not isinstance(node, _STATEMENTS):
            raise TemplateSyntaxError(
                f"{type(node).__name__.lower()} is not available; use if, for and set",
                node.lineno,
            )
        if isinstance(node, nodes.Pow):
            raise TemplateSyntaxError("powers are not available", node.lineno)
        if isinstance(node, nodes.For) and node.recursive:
            raise TemplateSyntaxError("recursive loops are not available", node.lineno)
        if isinstance(node, nodes.Call) and not _may_be_called(node.node):
            raise TemplateSyntaxError(
                "calls are not available; use filters: {{ name|lower }}", node.lineno
            )
        if isinstance(node, nodes.Name):
            if node.name.startswith("_"):
                raise TemplateSyntaxError("a name must begin with a letter", node.lineno)
            if node.ctx != "load" and node.name in RESERVED:
                raise TemplateSyntaxError(f"{node.name} cannot be set", node.lineno)
        if isinstance(node, nodes.Filter) and node.name.startswith("_"):
            raise TemplateSyntaxError(f"No filter named {node.name!r}.", node.lineno)


def _may_be_called(node: nodes.Expr) -> bool:
    if isinstance(node, nodes.Getattr):
        return isinstance(node.node, nodes.Name) and node.node.name == "loop"
    return isinstance(node, nodes.Name) and node.name == "range"


class _Transformer(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja's naming scheme
        """Replace `~` by the filter `join`, which has a size limit."""
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802 - as above
        return self._counted(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802 - as above
        return self._counted(node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802 - as above
        return self._counted(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - as above
        if isinstance(node.arg, nodes.Slice):
            return self._counted(node)
        return self.generic_visit(node)

    def _counted(self, node: nodes.Expr) -> nodes.Expr:
        """Count a value that the template creates, unless it contains only constants."""
        if not any(node.find_all((nodes.Name, nodes.Filter, nodes.Call))):
            return node
        self.generic_visit(node)
        return _filter(node, "_counted")

    def visit_Output(self, node: nodes.Output) -> list[nodes.Output]:  # noqa: N802 - as above
        """Write each part on its own, so that an error has the right line."""
        return [nodes.Output([self._part(part)], lineno=part.lineno) for part in node.nodes]

    def visit_If(self, node: nodes.If) -> nodes.Node:  # noqa: N802 - as above
        return self._conditional(node)

    def visit_CondExpr(self, node: nodes.CondExpr) -> nodes.Node:  # noqa: N802 - as above
        return self._conditional(node)

    def _conditional(self, node: nodes.If | nodes.CondExpr) -> nodes.Node:
        self.generic_visit(node)
        truth = nodes.Name("_truth", "load", lineno=node.lineno)
        test: Any = node.test  # typed as any node in `nodes.If`
        node.test = _unless_trial(test, truth)
        return node

    def _part(self, part: nodes.Expr) -> nodes.Expr:
        if isinstance(part, nodes.TemplateData):
            return part
        expression = nodes.Const(_describe(part), lineno=part.lineno)
        written = _filter(self.visit(part), "_output", expression)
        return _unless_trial(written, nodes.Const("", lineno=part.lineno))


def _unless_trial(node: nodes.Expr, instead: nodes.Expr) -> nodes.Expr:
    """Replace an expression that mentions the recipient in a trial run."""
    names = {found.name for found in node.find_all(nodes.Name)}
    if isinstance(node, nodes.Name):
        names.add(node.name)
    if not names & PER_RECIPIENT:
        return node
    trial = nodes.Name("_trial", "load", lineno=node.lineno)
    return nodes.CondExpr(trial, instead, node, lineno=node.lineno)


def _filter(node: nodes.Expr, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


def _describe(node: nodes.Node) -> str:
    """Return a path of names as it is written in the template, without any computed value."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        return f"{_describe(node.node)}.{node.attr}"
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return f"{_describe(node.node)}[{node.arg.value!r}]"
    if isinstance(node, nodes.Filter) and node.node is not None:
        return f"{_describe(node.node)}|{node.name}"
    return "the expression"
