"""`ringback rules`: checks rules, and tries them on an event without publishing anything."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import click
from pydantic import ValidationError

from services.cli.output import echo
from services.ingestion.domain import (
    MESSAGE_TYPE_OF,
    EventOutcome,
    ReceivedEvent,
    content_id,
    decide,
)
from services.ingestion.rules import CompiledRule, InvalidRulesError, load, load_by_name
from services.ingestion.settings import IngestionSettings
from shared.contracts.context import field_errors
from shared.contracts.events import Event
from shared.errors import PermanentError
from shared.process.configuration import configured_table

FILE = click.Path(dir_okay=False, path_type=Path)
OUTCOMES = {
    EventOutcome.ACCEPTED: "accepted",
    EventOutcome.STALE: "stale: the event is too old",
    EventOutcome.SKIPPED: "skipped: no rule's condition holds",
}


@click.group
def rules() -> None:
    """Check and try the rules that turn events into commands (docs/events.md)."""


@rules.command
@click.argument("file", type=FILE, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def check(file: Path | None, *, as_json: bool) -> None:
    """Check the rules in FILE and list every error.

    FILE defaults to RINGBACK_RULES_FILE. Without errors, the command lists the rules in FILE and
    the shipped rules that FILE does not replace. The exit code is 1 if there are errors.

    \b
    Examples:
      ringback rules check
      ringback rules check rules.toml
    """
    file = file or configured_table(IngestionSettings).rules_file
    faults: tuple[str, ...] = ()
    loaded: dict[str, CompiledRule] = {}
    try:
        loaded = load_by_name(file)
    except InvalidRulesError as error:
        faults = error.faults
    if as_json:
        listed = [
            {
                "rule": rule.name,
                "source": rule.source,
                "from_service": rule.from_service,
                "event": rule.event,
                "commands": [template.label for template in rule.templates],
            }
            for rule in loaded.values()
        ]
        echo(json.dumps({"rules": listed, "errors": faults}))
    else:
        for rule in loaded.values():
            commands = ", ".join(template.kind for template in rule.templates) or "no commands"
            event = f"{rule.from_service}.{rule.event}"
            echo(f"{rule.name} ({rule.source}): {event} -> {commands}")
        for fault in faults:
            click.echo(f"  {fault}", err=True)
    if faults:
        raise SystemExit(1)


@rules.command("try")
@click.argument("file", type=FILE)
@click.argument("event", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def try_(file: Path, event: IO[bytes], *, as_json: bool) -> None:
    """Show the commands that FILE and the shipped rules create for EVENT.

    Nothing is published or stored. EVENT is a file with the body of an event, or - for standard
    input. The exit code is 1, with the reason, if the event would be dead-lettered.

    \b
    Examples:
      ringback rules try rules.toml event.json
      echo '{"from_service": "auth", "event": "user_signed_up", "details": {"username": "Ann",
             "user": "https://auth/api/v1/users/7/"}}' | ringback rules try rules.toml -
    """
    try:
        loaded = load(file)
    except InvalidRulesError as error:
        raise click.ClickException(f"The rules are not valid.\n{_lines(error.faults)}") from None
    try:
        model = Event.model_validate_json(event.read())
    except ValidationError as error:
        faults = map(str, field_errors(error))
        raise click.ClickException(f"The event is not valid.\n{_lines(faults)}") from None
    at = model.occurred_at.timestamp() if model.occurred_at else None
    received = ReceivedEvent(model, model.event_id or content_id(model), at)
    try:
        decision = decide(loaded, received, now=time.time())
    except PermanentError as error:
        raise click.ClickException(f"The event would be dead-lettered: {error}") from None
    commands = []
    for command in decision.commands:
        message_type = MESSAGE_TYPE_OF[command.kind]
        message = message_type.model.model_validate_json(command.body)
        commands.append(
            {
                "type": message_type.name,
                "exchange": message_type.exchange,
                "routing_key": message_type.routing_key_of(message),
                "id": str(command.id),
                "body": json.loads(command.body),
            }
        )
    if as_json:
        shown = {"id": received.id, "outcome": decision.outcome, "commands": commands}
        echo(json.dumps(shown))
        return
    echo(f"event {received.id}: {OUTCOMES[decision.outcome]}")
    for shown_command in commands:
        echo(_as_text(shown_command))


def _lines(faults: Iterable[str]) -> str:
    return "\n".join(f"  {fault}" for fault in faults)


def _as_text(command: dict[str, Any]) -> str:
    exchange = command["exchange"]
    where = f"exchange {exchange!r}" if exchange else "the default exchange"
    route = f"{where}, routing key {command['routing_key']!r}"
    body = json.dumps(command["body"], indent=2, ensure_ascii=False)
    return f"{command['type']} to {route}, id {command['id']}\n{body}"
