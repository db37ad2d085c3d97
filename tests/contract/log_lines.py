"""Find every log line in the source: its level, its message and its context fields."""

import ast
import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "log"}
Scope = list[ast.stmt]


@dataclass(frozen=True, order=True)
class LogLine:
    place: str
    message: str
    level: str
    fields: tuple[str, ...]


def log_lines(root: Path) -> list[LogLine]:
    """Return the log lines of `services` and `shared`, sorted and without repetitions.

    Raises:
        ValueError: the fields of a log line cannot be derived from its source.
    """
    files = sorted(file for name in ("services", "shared") for file in (root / name).rglob("*.py"))
    modules = {file: ast.parse(file.read_text()) for file in files}
    everywhere = _functions(modules.values())
    lines = set()
    for file, module in modules.items():
        relative = file.relative_to(root)
        place = relative.parts[1] if relative.parts[0] == "services" else "all services"
        functions = everywhere | _functions([module])  # its own come first
        for call, scope in _log_calls(module.body, []):
            try:
                fields = _fields(_keyword(call, "extra"), scope, functions)
                level, message = _level(call, scope), _message(call)
            except ValueError as error:
                raise ValueError(f"{relative}:{call.lineno}: {error}") from None
            lines.add(LogLine(place, message, level, tuple(sorted(fields))))
        for line in _hidden_log_calls(module):
            raise ValueError(f"{relative}:{line}: call the log method directly")
    return sorted(lines)


def _functions(modules: Iterable[ast.Module]) -> dict[str, ast.FunctionDef]:
    """Return every function that returns a dict, by name, unless several have the name."""
    found = [
        node
        for module in modules
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        and node.returns
        and ast.unparse(node.returns).startswith("dict[str,")
    ]
    names = Counter(node.name for node in found)
    return {node.name: node for node in found if names[node.name] == 1}


def _log_calls(body: Scope, before: Scope) -> Iterator[tuple[ast.Call, Scope]]:
    """Yield each log call with the statements that were executed before it."""
    done = list(before)
    for statement in body:
        blocks = [value for _, value in ast.iter_fields(statement) if _is_block(value)]
        inner = [
            nested
            for block in blocks
            for nested in block
            if isinstance(nested, ast.ExceptHandler | ast.match_case)
        ]
        for nested in [*blocks, *(each.body for each in inner)]:
            if isinstance(nested[0], ast.stmt):
                yield from _log_calls(nested, done)
        if not blocks:
            for node in ast.walk(statement):
                if isinstance(node, ast.Call) and _is_log(node):
                    yield node, done
        done.append(statement)


def _hidden_log_calls(module: ast.Module) -> Iterator[int]:
    """Yield the lines that use a log method without a call: `_log_calls` does not see them."""
    called = {id(node.func) for node in ast.walk(module) if isinstance(node, ast.Call)}
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in LEVELS
            and ast.unparse(node.value) == "logger"
            and id(node) not in called
        ):
            yield node.lineno


def _is_block(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], ast.stmt | ast.ExceptHandler | ast.match_case)
    )


def _is_log(call: ast.Call) -> bool:
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in LEVELS
        and ast.unparse(call.func.value) == "logger"
    )


def _level(call: ast.Call, scope: Scope) -> str:
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr == "exception":
        return "error"
    if call.func.attr != "log":
        return call.func.attr
    expression = call.args[0]
    if isinstance(expression, ast.Name):
        [expression] = [
            each.value
            for each in scope
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == expression.id
        ]
    names = {
        node.attr.lower()
        for node in ast.walk(expression)
        if isinstance(node, ast.Attribute) and node.attr.lower() in LEVELS
    }
    return " or ".join(sorted(names))


def _message(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Attribute)
    message = call.args[1 if call.func.attr == "log" else 0]
    text = _text(message)
    return re.sub(r"%[\d.]*[a-z]", "…", text)


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == name), None)


def _fields(
    expression: ast.expr | None, scope: Scope, functions: dict[str, ast.FunctionDef]
) -> set[str]:
    """Return the keys of a dict expression."""
    match expression:
        case None:
            return set()
        case ast.Dict(keys, values):
            fields = set()
            for key, value in zip(keys, values, strict=True):
                fields |= {_text(key)} if key else _fields(value, scope, functions)
            return fields
        case ast.BinOp(left, ast.BitOr(), right):
            return _fields(left, scope, functions) | _fields(right, scope, functions)
        case ast.IfExp(_, body, orelse):
            return _fields(body, scope, functions) | _fields(orelse, scope, functions)
        case ast.Name(name):
            return _assigned(name, scope, functions)
        case ast.Call(ast.Name(name) | ast.Attribute(_, name)) if name in functions:
            function = functions[name]
            returned = [each for each in ast.walk(function) if isinstance(each, ast.Return)]
            fields = set()
            for each in returned:
                fields |= _fields(each.value, function.body, functions)
            return fields
    raise ValueError(f"cannot derive the fields of {ast.unparse(expression)}")


def _assigned(name: str, scope: Scope, functions: dict[str, ast.FunctionDef]) -> set[str]:
    """Return the keys that the statements put into the dict of that name."""
    fields: set[str] = set()
    found = False
    for position, statement in enumerate(scope):
        match statement:
            case (
                ast.Assign([ast.Name(target)], value)
                | ast.AnnAssign(ast.Name(target), value=ast.expr() as value)
                | ast.AugAssign(ast.Name(target), ast.BitOr(), value)
            ) if target == name:
                found = True
                fields |= _fields(value, scope[:position], functions)
            case ast.Assign([ast.Subscript(ast.Name(target), key)]) if target == name:
                fields.add(_text(key))
            case ast.If(_, body):  # what a condition may add
                with contextlib.suppress(ValueError):
                    fields |= _assigned(name, [*scope[:position], *body], functions)
    if not found:
        raise ValueError(f"cannot find the assignment of {name}")
    return fields


def _text(expression: ast.expr) -> str:
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return expression.value
    raise ValueError(f"not a constant text: {ast.unparse(expression)}")
