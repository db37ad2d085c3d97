"""A template's Jinja, taken apart into what is worked out once and what for each user.

An expression that is put out, depends on the user, and on no variable of a loop or `set`, is a
*slot*: its value is not needed to know what the message looks like, only its place is. Any other
expression of that kind is a *probe*: users for whom all probes give the same get messages of the
same *shape*. What is left of the template mentions no user; it asks `_slot`, `_probe` and `_value`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from jinja2 import TemplateSyntaxError, Undefined, nodes
from jinja2.environment import Template
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import safe_range
from jinja2.visitor import NodeTransformer

from shared.templating.sandbox import JsonEnvironment, join

PER_USER: Final = frozenset(("user", "unsubscribe_url"))
UNSUBSCRIBE: Final = 0
"""The number of the slot that is `unsubscribe_url`, in every program."""
GIVEN: Final = PER_USER | {"product"}
"""Variables that every template has; a posting's context can't name them."""

_LOOP: Final = frozenset(
    {"index", "index0", "revindex", "revindex0", "first", "last", "length"}
    | {"previtem", "nextitem", "cycle", "changed"}
)
_STATEMENTS: Final = (nodes.Output, nodes.If, nodes.For, nodes.Assign, nodes.With)
_OPTIONAL: Final = frozenset(("default", "d", "defined", "undefined"))


class TemplateError(Exception):
    """A value can't be put into a text; `line` is where, if the traceback does not tell it."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


class _Environment(JsonEnvironment):
    intercepted_binops = JsonEnvironment.intercepted_binops | {"+"}  # texts would grow beyond all

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True)
        self.globals["range"] = safe_range
        self.filters |= {"default": _default, "d": _default}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in _LOOP:
            return getattr(obj, attribute)
        return super().getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """As elsewhere, but what is missing is not named: it may be a value."""
        found = super().getitem(obj, argument)
        return self.undefined(hint="there is no such item") if _missing(found) else found


def _missing(value: Any) -> bool:
    return isinstance(value, Undefined)


def _default(value: Any, instead: Any = "", boolean: bool = False) -> Any:  # noqa: FBT001, FBT002
    """Jinja's own, for null too."""
    return instead if value is None or _missing(value) or (boolean and not value) else value


_ENVIRONMENT: Final = _Environment()


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression that depends on the user, compiled; `what` is its name in errors."""

    compiled: Template
    run: Callable[[Context], Any]
    what: str
    line: int
    truth: bool  # only whether it is true matters

    def of(self, context: Context) -> Any:
        """Its value, which may be Undefined."""
        for _ in self.run(context):
            pass
        value = context.vars["_result"]
        if self.truth:
            return bool(value)
        return list(value) if isinstance(value, Iterator) else value

    def text(self, context: Context) -> str:
        """Its value as it is put into a text; raises TemplateError, besides whatever it raises."""
        return as_text(self.of(context), self.what, self.line)


@dataclass(frozen=True, slots=True)
class CompiledTemplate:
    """A template taken apart."""

    subject: Template
    body: Template
    slots: tuple[Expression, ...]
    probes: tuple[Expression, ...]
    required: Mapping[str, int]  # variables of the context, and the line of their first use
    optional: frozenset[str]

    @property
    def texts(self) -> tuple[Template, Template]:
        """What is put out."""
        return self.subject, self.body

    def variables(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All that templates can name, besides what depends on the user."""
        return {**_ENVIRONMENT.globals, **given}

    def context(self, variables: Mapping[str, Any]) -> Context:
        """What expressions are evaluated in."""
        return self.body.new_context(variables, shared=True)  # type: ignore[arg-type] # only read

    def line_of(self, error: BaseException) -> int | None:
        """The line of the template in which the error was raised, if it was in there."""
        texts = {
            text.root_render_func.__code__: text
            for text in (*self.texts, *(each.compiled for each in (*self.slots, *self.probes)))
        }
        line = None
        frame = error.__traceback__
        while frame is not None:
            text = texts.get(frame.tb_frame.f_code)
            line = text.get_corresponding_lineno(frame.tb_lineno) if text else line
            frame = frame.tb_next
        return line


def compiled(subject: str, body: str) -> CompiledTemplate:
    """Take a template apart.

    Raises:
        TemplateSyntaxError: it is no Jinja, or does what is not possible here; with its line.
    """
    trees = [_ENVIRONMENT.parse(subject), _ENVIRONMENT.parse(body)]
    used: dict[str, int] = {}
    forgiven: set[str] = set()
    splitter = _Splitter()
    for tree in trees:
        _check(tree)
        names = find_undeclared_variables(tree) - GIVEN - set(_ENVIRONMENT.globals)
        for name in tree.find_all(nodes.Name):
            if name.name in names:
                used[name.name] = min(name.lineno, used.get(name.name, name.lineno))
        forgiven |= {
            each.node.name
            for each in tree.find_all((nodes.Filter, nodes.Test))
            if each.name in _OPTIONAL and isinstance(each.node, nodes.Name)
        }
        _Bounder().visit(tree)
        splitter.split(tree)
    compiled_subject, compiled_body = (_ENVIRONMENT.from_string(tree) for tree in trees)
    return CompiledTemplate(
        compiled_subject,
        compiled_body,
        tuple(map(_expression, splitter.slots)),
        tuple(map(_expression, splitter.probes)),
        {name: line for name, line in used.items() if name not in forgiven},
        frozenset(used.keys() & forgiven),
    )


def as_text(value: Any, what: str, line: int | None = None) -> str:
    """A value as it is put into a text.

    Raises:
        TemplateError: it is missing, or no text, number or boolean; `what` is named.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise TemplateError(f"{what} is null; |default(…) says what to put there instead", line)
    if _missing(value):
        raise TemplateError(f"{what} is missing", line)
    if isinstance(value, bool | int | float):
        return join([value])
    raise TemplateError(f"{what} is a list or an object, which can't be part of a text", line)


def _check(tree: nodes.Template) -> None:
    for node in tree.find_all(nodes.Node):
        if isinstance(node, nodes.Stmt) and not isinstance(node, _STATEMENTS):
            raise TemplateSyntaxError(
                f"{type(node).__name__.lower()} is not possible here; if, for and set are",
                node.lineno,
            )
        if isinstance(node, nodes.Pow):
            raise TemplateSyntaxError("powers are not possible here", node.lineno)
        if isinstance(node, nodes.For) and node.recursive:
            raise TemplateSyntaxError("a loop can't be recursive here", node.lineno)
        if isinstance(node, nodes.Call) and not _may_be_called(node.node):
            raise TemplateSyntaxError(
                "calls are not possible here, filters are: {{ name|lower }}", node.lineno
            )
        if isinstance(node, nodes.Name):
            if node.name.startswith("_"):
                raise TemplateSyntaxError("a name begins with a letter", node.lineno)
            if node.ctx != "load" and node.name in GIVEN:
                raise TemplateSyntaxError(f"{node.name} can't be set", node.lineno)


def _may_be_called(node: nodes.Expr) -> bool:
    if isinstance(node, nodes.Getattr):
        return isinstance(node.node, nodes.Name) and node.node.name == "loop"
    return isinstance(node, nodes.Name) and node.name == "range"


class _Bounder(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 - Jinja calls it so
        """The filter `join` in the place of `~`, because it has a bound."""
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)


@dataclass(slots=True)
class _Found:
    node: nodes.Expr
    truth: bool = False


@dataclass
class _Splitter(NodeTransformer):
    slots: list[_Found] = field(
        default_factory=lambda: [_Found(nodes.Name("unsubscribe_url", "load", lineno=1))]
    )
    probes: list[_Found] = field(default_factory=list)
    _local: set[str] = field(default_factory=set)

    def split(self, tree: nodes.Template) -> None:
        """Put questions in the place of every expression that depends on the user."""
        stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
        self._local = stored | {"loop"}
        self.visit(tree)
        tree.set_environment(_ENVIRONMENT)

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node, nodes.Expr) and self._per_user(node):
            return self._asked("_probe", self.probes, _Found(node))
        return super().visit(node, *args, **kwargs)

    def visit_Output(self, node: nodes.Output) -> list[nodes.Output]:  # noqa: N802 - Jinja calls it so
        """Each part on its own, so that an error is told with the right line."""
        return [nodes.Output([self._part(part)], lineno=part.lineno) for part in node.nodes]

    def visit_If(self, node: nodes.If) -> nodes.Node:  # noqa: N802 - as above
        node.test = self._test(node.test)
        return self.generic_visit(node)

    def visit_CondExpr(self, node: nodes.CondExpr) -> nodes.Node:  # noqa: N802
        node.test = self._test(node.test)
        return self.generic_visit(node)

    def _part(self, part: nodes.Expr) -> nodes.Expr:
        if isinstance(part, nodes.TemplateData):
            return part
        if self._per_user(part):
            return self._asked("_slot", self.slots, _Found(part))
        name = nodes.Const(_described(part), lineno=part.lineno)
        return _call("_value", [self.visit(part), name], part.lineno)

    def _test(self, test: Any) -> Any:
        if self._per_user(test):
            return self._asked("_probe", self.probes, _Found(test, truth=True))
        return test

    def _per_user(self, node: nodes.Expr) -> bool:
        if isinstance(node, nodes.Slice):  # a part of an expression, without a value of its own
            return False
        names = {each.name for each in node.find_all(nodes.Name)}
        if isinstance(node, nodes.Name):
            names.add(node.name)
        return bool(names & PER_USER) and not names & self._local

    def _asked(self, whom: str, known: list[_Found], found: _Found) -> nodes.Expr:
        if found not in known:
            known.append(found)
        number = nodes.Const(known.index(found), lineno=found.node.lineno)
        return _call(whom, [number], found.node.lineno)


def _call(whom: str, args: list[nodes.Expr], line: int) -> nodes.Expr:
    return nodes.Call(nodes.Name(whom, "load", lineno=line), args, [], None, None, lineno=line)


def _expression(found: _Found) -> Expression:
    result = nodes.Assign(nodes.Name("_result", "store"), found.node, lineno=found.node.lineno)
    template = _ENVIRONMENT.from_string(nodes.Template([result], lineno=1))
    return Expression(
        template,
        template.root_render_func,
        _described(found.node),
        found.node.lineno,
        found.truth,
    )


def _described(node: nodes.Node) -> str:
    """A path of names as it was written; no word on what is computed."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        return f"{_described(node.node)}.{node.attr}"
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return f"{_described(node.node)}[{node.arg.value!r}]"
    if isinstance(node, nodes.Filter) and node.node is not None:
        return f"{_described(node.node)}|{node.name}"
    return "the expression"
