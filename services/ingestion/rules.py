"""Rules are configuration: TOML that says what follows from which event.

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

from services.ingestion.domain import VARIABLES, Kind, RuleError, Rules
from services.ingestion.expressions import (
    Expression,
    ExpressionFailedError,
    InvalidExpressionError,
    condition,
    node_of,
)
from shared.contracts.callback import SendCallback
from shared.contracts.context import field_errors, json_text
from shared.contracts.durations import Duration, seconds
from shared.contracts.events import Word, Words
from shared.contracts.postings import Posting
from shared.contracts.schedules import ScheduleCallback
from shared.contracts.user_events import UserEvent
from shared.errors import RingbackError
from shared.templating.sandbox import MAX_SIZE

SHIPPED: Final = resources.files("services.ingestion").joinpath("rules.toml")
MODELS: Final[Mapping[Kind, type[BaseModel]]] = {
    Kind.POSTING: Posting,
    Kind.SCHEDULE: ScheduleCallback,
    Kind.CALLBACK: SendCallback,
    Kind.USER_EVENT: UserEvent,
}
FAULTS_NAMED: Final = 10
_NAME: Final = TypeAdapter(Word)

Table = dict[str, Any]


class InvalidRulesError(RingbackError):
    """The rules can't be used; `faults` names file, key and reason of each. Exit code 2."""

    exit_code = 2

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class _Written(BaseModel):
    """A rule as it stands in the file."""

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
class Template:
    """A command as a rule has it; `label` names it within the rule: `posting.0`."""

    label: str
    kind: Kind
    expression: Expression


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule that is ready to use. `source` is the file it came from."""

    name: str
    source: str
    from_service: str
    event: str
    when: Expression | None
    max_age: float | None
    templates: tuple[Template, ...]

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether its condition holds.

        Raises:
            RuleError: the condition has no value for this event.
        """
        if self.when is None:
            return True
        try:
            return bool(self.when.of(values))
        except ExpressionFailedError as error:
            raise RuleError(f"rule {self.name}, when: {error}") from None

    def commands(self, values: Mapping[str, Any]) -> list[tuple[str, Kind, bytes]]:
        """Its commands for an event: label, kind, and the body, which keeps its contract.

        Raises:
            RuleError: a value is missing, or a command would break its contract.
        """
        return [(each.label, each.kind, self._body(each, values)) for each in self.templates]

    def _body(self, template: Template, values: Mapping[str, Any]) -> bytes:
        where = f"rule {self.name}, {template.label}"
        try:
            text = json_text(template.expression.of(values))
            if len(text) > MAX_SIZE:
                raise RuleError(f"{where}: larger than {MAX_SIZE} characters")
            body = text.encode()
            MODELS[template.kind].model_validate_json(body)
        except ValidationError as error:
            named = [f"{f.field}: {f.message}".removeprefix(": ") for f in field_errors(error)]
            raise RuleError(f"{where}: {'; '.join(named[:FAULTS_NAMED])}") from None
        except (ExpressionFailedError, ValueError, RecursionError) as error:
            raise RuleError(f"{where}: {error}") from None
        return body


def load(file: Path | None = None) -> Rules:
    """What is in force, by event.

    Raises:
        InvalidRulesError: with every fault of the file.
    """
    found: dict[tuple[str, str], list[CompiledRule]] = {}
    for rule in by_name(file).values():
        found.setdefault((rule.from_service, rule.event), []).append(rule)
    return found


def by_name(file: Path | None = None) -> dict[str, CompiledRule]:
    """The shipped rules, and those of a file; one of the same name replaces a shipped one.

    Raises:
        InvalidRulesError: with every fault of the file.
    """
    rules = parsed(SHIPPED.read_text(encoding="utf-8"), "shipped")
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
            raise InvalidRulesError((f"{file}: {reason}",)) from None
        rules += parsed(text, str(file))
    return {rule.name: rule for rule in rules}


def parsed(text: str, source: str) -> list[CompiledRule]:
    """The rules in a text of TOML.

    Raises:
        InvalidRulesError: with every fault.
    """
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRulesError((f"{source}: {error}",)) from None
    rules: list[CompiledRule] = []
    faults: list[str] = []
    for name, table in tables.items():
        found = [f"{source}: {where}: {why}" for where, why in _faults(name, table)]
        faults += found
        if not found:
            rules.append(_compiled(name, table, source))
    if faults:
        raise InvalidRulesError(tuple(faults))
    return rules


def _faults(name: str, table: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a rule: key and reason."""
    try:
        _NAME.validate_python(name, strict=True)
    except ValidationError:
        yield name, "a rule's name has letters, digits, - and _ only"
    if not isinstance(table, dict):
        yield name, f"must be a table: [{name}]"
        return
    written = None
    try:
        written = _Written.model_validate(table)
    except ValidationError as error:
        yield from ((f"{name}.{f.field}", f.message) for f in field_errors(error))
    when = table.get("when")
    if isinstance(when, str):
        try:
            condition(when, VARIABLES)
        except InvalidExpressionError as error:
            yield f"{name}.when", str(error)
    if written is None:
        return
    for kind in Kind:
        for index, command in enumerate(getattr(written, kind)):
            yield from _command_faults(f"{name}.{kind}.{index}", kind, command)


def _command_faults(where: str, kind: Kind, command: Table) -> Iterator[tuple[str, str]]:
    fields = MODELS[kind].model_fields
    if "hmac_secret" in command:
        yield f"{where}.hmac_secret", "name the secret instead: secret_ref"
    wrong = set()
    for path, value in _leaves(command):
        try:
            node_of(value, VARIABLES)
        except InvalidExpressionError as error:
            wrong.add(path[0])
            yield ".".join((where, *path)), str(error)
    missing = [key for key, f in fields.items() if f.is_required() and key not in command]
    yield from ((f"{where}.{key}", "Field required") for key in missing)
    # What is fixed is judged now, what comes from the event when there is one.
    fixed = {k: v for k, v in command.items() if k not in wrong and (_fixed(v) or k not in fields)}
    try:
        MODELS[kind].model_validate_json(json_text(fixed))
    except ValidationError as error:
        for fault in field_errors(error):
            key = fault.field.partition(".")[0]
            if key in fixed or (not key and fixed == command):
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


def _fixed(value: Any) -> bool:
    """Whether nothing in it depends on the event."""
    return not any(isinstance(leaf, str) and "{" in leaf for _, leaf in _leaves(value))


def _compiled(name: str, table: Table, source: str) -> CompiledRule:
    written = _Written.model_validate(table)
    return CompiledRule(
        name,
        source,
        written.from_service,
        written.event,
        None if written.when is None else condition(written.when, VARIABLES),
        None if written.max_age is None else float(seconds(written.max_age)),
        tuple(
            Template(f"{kind}.{index}", kind, Expression(_node(command)))
            for kind in Kind
            for index, command in enumerate(getattr(written, kind))
        ),
    )


def _node(value: Any) -> nodes.Expr:
    """One expression for a whole command."""
    if isinstance(value, dict):
        return nodes.Dict([nodes.Pair(nodes.Const(k), _node(v)) for k, v in value.items()])
    if isinstance(value, list):
        return nodes.List([_node(item) for item in value])
    return node_of(value, VARIABLES)
