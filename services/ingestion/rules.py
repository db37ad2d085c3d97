"""Loads rules: TOML that defines the commands that follow from an event.

[welcome]                       # the rule's name
from_service = "auth"
event = "user_signed_up"
when = "details.user != ''"     # optional: an expression
max_age = "1 day"               # optional

[[welcome.posting]]             # or schedule, callback, user_event; any number
receivers = "{{ details.user }}"
...
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final

from jinja2 import nodes
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.ingestion.domain import MESSAGE_TYPE_OF, VARIABLES, Kind, RuleError, Rules
from services.ingestion.expressions import (
    Expression,
    ExpressionFailedError,
    InvalidExpressionError,
    compile_condition,
    parse_value,
)
from shared.contracts.context import field_errors, json_text
from shared.contracts.durations import Duration, seconds
from shared.contracts.events import Word, Words
from shared.errors import RingbackError
from shared.templating.meter import MAX_SIZE

SHIPPED: Final = resources.files("services.ingestion").joinpath("rules.toml")
MAX_FAULTS: Final = 10
_NAME: Final = TypeAdapter(Word)

Table = dict[str, Any]


class InvalidRulesError(RingbackError):
    """The rules are not valid; `faults` names the file, key and reason of each. Exit code 2."""

    exit_code = 2

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class _RuleTable(BaseModel):
    """A rule as a TOML table."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    from_service: Word
    event: Words
    when: str | None = None
    max_age: Duration | None = None
    posting: Annotated[list[Table], Field(default_factory=list)]
    schedule: Annotated[list[Table], Field(default_factory=list)]
    callback: Annotated[list[Table], Field(default_factory=list)]
    user_event: Annotated[list[Table], Field(default_factory=list)]


@dataclass(frozen=True, slots=True)
class CommandTemplate:
    """A command of a rule; `label` names it within the rule: `posting.0`."""

    label: str
    kind: Kind
    expression: Expression


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A compiled rule. `source` is its file."""

    name: str
    source: str
    from_service: str
    event: str
    when: Expression | None
    max_age: float | None
    templates: tuple[CommandTemplate, ...]

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Return whether its condition holds.

        Raises:
            RuleError: the condition has no value for this event.
        """
        if self.when is None:
            return True
        try:
            return bool(self.when.evaluate(values))
        except ExpressionFailedError as error:
            raise RuleError(f"rule {self.name}, when: {error}") from None

    def commands(self, values: Mapping[str, Any]) -> list[tuple[str, Kind, bytes]]:
        """Return its commands for an event: label, kind and a body that is valid by its contract.

        Raises:
            RuleError: a value is missing, or a command violates its contract.
        """
        return [
            (template.label, template.kind, self._body(template, values))
            for template in self.templates
        ]

    def _body(self, template: CommandTemplate, values: Mapping[str, Any]) -> bytes:
        where = f"rule {self.name}, {template.label}"
        try:
            text = json_text(template.expression.evaluate(values))
            if len(text) > MAX_SIZE:
                raise RuleError(f"{where}: larger than {MAX_SIZE} characters")
            body = text.encode()
            MESSAGE_TYPE_OF[template.kind].model.model_validate_json(body)
        except ValidationError as error:
            faults = map(str, field_errors(error)[:MAX_FAULTS])
            raise RuleError(f"{where}: {'; '.join(faults)}") from None
        except (ExpressionFailedError, ValueError, RecursionError) as error:
            raise RuleError(f"{where}: {error}") from None
        return body


def load(file: Path | None = None) -> Rules:
    """Load the shipped rules and those of a file, grouped by event.

    Raises:
        InvalidRulesError: the file has faults; names all of them.
    """
    found: dict[tuple[str, str], list[CompiledRule]] = {}
    for rule in load_by_name(file).values():
        found.setdefault((rule.from_service, rule.event), []).append(rule)
    return found


def load_by_name(file: Path | None = None) -> dict[str, CompiledRule]:
    """Load the shipped rules and those of a file, which replace shipped ones of the same name.

    Raises:
        InvalidRulesError: the file has faults; names all of them.
    """
    rules = parse(SHIPPED.read_text(encoding="utf-8"), "shipped")
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise InvalidRulesError((f"{file}: {reason}",)) from None
        rules += parse(text, str(file))
    return {rule.name: rule for rule in rules}


def parse(text: str, source: str) -> list[CompiledRule]:
    """Parse rules in TOML.

    Raises:
        InvalidRulesError: the text has faults; names all of them.
    """
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRulesError((f"{source}: {error}",)) from None
    rules: list[CompiledRule] = []
    faults: list[str] = []
    for name, table in tables.items():
        found = [f"{source}: {where}: {reason}" for where, reason in _faults(name, table)]
        faults += found
        if not found:
            rules.append(_compile(name, table, source))
    if faults:
        raise InvalidRulesError(tuple(faults))
    return rules


def _faults(name: str, table: Any) -> Iterator[tuple[str, str]]:
    """Yield the key and the reason of each fault of a rule."""
    try:
        _NAME.validate_python(name, strict=True)
    except ValidationError:
        yield name, "a rule's name may contain only letters, digits, - and _"
    if not isinstance(table, dict):
        yield name, f"must be a table: [{name}]"
        return
    rule = None
    try:
        rule = _RuleTable.model_validate(table)
    except ValidationError as error:
        yield from ((f"{name}.{f.field}", f.message) for f in field_errors(error))
    when = table.get("when")
    if isinstance(when, str):
        try:
            compile_condition(when, VARIABLES)
        except InvalidExpressionError as error:
            yield f"{name}.when", str(error)
    if rule is None:
        return
    for kind in Kind:
        for index, command in enumerate(getattr(rule, kind)):
            yield from _command_faults(f"{name}.{kind}.{index}", kind, command)


def _command_faults(where: str, kind: Kind, command: Table) -> Iterator[tuple[str, str]]:
    model = MESSAGE_TYPE_OF[kind].model
    fields = model.model_fields
    if "hmac_secret" in command:
        yield f"{where}.hmac_secret", "use secret_ref instead, which names a configured secret"
    wrong = set()
    for path, value in _leaves(command):
        try:
            parse_value(value, VARIABLES)
        except InvalidExpressionError as error:
            wrong.add(path[0])
            yield ".".join((where, *path)), str(error)
    missing = [key for key, f in fields.items() if f.is_required() and key not in command]
    yield from ((f"{where}.{key}", "Field required") for key in missing)
    # Constant values are validated now. Values from an event are validated when it is handled.
    constant = {
        k: v for k, v in command.items() if k not in wrong and (_constant(v) or k not in fields)
    }
    try:
        model.model_validate_json(json_text(constant))
    except ValidationError as error:
        for fault in field_errors(error):
            key = fault.field.partition(".")[0]
            if key in constant or (not key and constant == command):
                yield f"{where}.{fault.field}".rstrip("."), fault.message


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    else:
        yield path, value


def _constant(value: Any) -> bool:
    """Return whether the value does not depend on the event."""
    return not any(isinstance(leaf, str) and "{" in leaf for _, leaf in _leaves(value))


def _compile(name: str, table: Table, source: str) -> CompiledRule:
    rule = _RuleTable.model_validate(table)
    return CompiledRule(
        name,
        source,
        rule.from_service,
        rule.event,
        None if rule.when is None else compile_condition(rule.when, VARIABLES),
        None if rule.max_age is None else float(seconds(rule.max_age)),
        tuple(
            CommandTemplate(f"{kind}.{index}", kind, Expression(_node(command)))
            for kind in Kind
            for index, command in enumerate(getattr(rule, kind))
        ),
    )


def _node(value: Any) -> nodes.Expr:
    """Return one expression for a whole command."""
    if isinstance(value, dict):
        return nodes.Dict([nodes.Pair(nodes.Const(k), _node(v)) for k, v in value.items()])
    if isinstance(value, list):
        return nodes.List([_node(item) for item in value])
    return parse_value(value, VARIABLES)
