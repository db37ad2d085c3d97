"""`ringback rules`: what follows from events, checked and tried without sending anything."""

import json
import time
from pathlib import Path
from typing import IO, Any

import click
from pydantic import ValidationError

from services.ingestion.domain import Received, Verdict, content_id, decide
from services.ingestion.outbox import ROUTES
from services.ingestion.rules import CompiledRule, InvalidRulesError, by_name, load
from shared.contracts.context import field_errors
from shared.contracts.events import Event
from shared.errors import PermanentError
from shared.process.configuration import configured

FILE = click.Path(dir_okay=False, path_type=Path)
MEANING = {
    Verdict.ACT: "acted on",
    Verdict.STALE: "too old: not acted on",
    Verdict.SKIP: "no rule's condition holds: not acted on",
}


@click.group
def rules() -> None:
    """Rules: what follows from which event. docs/events.md explains how they are written."""


@rules.command
@click.argument("file", type=FILE, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def check(file: Path | None, *, as_json: bool) -> None:
    """Check the rules in FILE, by default RINGBACK_RULES_FILE, and name every fault.

    What is in force is listed: those of the file and the shipped ones that it does not replace.
    Exit code 1 if there are faults.

    \b
    Examples:
      ringback rules check
      ringback rules check rules.toml
    """
    file = file or configured().rules_file
    faults: tuple[str, ...] = ()
    known: dict[str, CompiledRule] = {}
    try:
        known = by_name(file)
    except InvalidRulesError as error:
        faults = error.faults
    if as_json:
        listed = [
            {
                "rule": rule.name,
                "source": rule.source,
                "from_service": rule.from_service,
                "event": rule.event,
                "commands": [each.label for each in rule.templates],
            }
            for rule in known.values()
        ]
        click.echo(json.dumps({"rules": listed, "faults": faults}))
    else:
        for rule in known.values():
            does = ", ".join(each.kind for each in rule.templates) or "nothing"
            about = f"{rule.from_service}.{rule.event}"
            click.echo(f"{rule.name} ({rule.source}): {about} -> {does}")
        for fault in faults:
            click.echo(f"  {fault}", err=True)
    if faults:
        raise SystemExit(1)


@rules.command("try")
@click.argument("file", type=FILE)
@click.argument("event", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def try_(file: Path, event: IO[bytes], *, as_json: bool) -> None:
    """Show what would be sent for the event in EVENT by the rules in FILE, and the shipped ones.

    Nothing is sent, and nothing is remembered. EVENT is a file with the body of a message, or - for
    standard input. Exit code 1 if the event would be dead, with the reason.

    \b
    Examples:
      ringback rules try rules.toml event.json
      echo '{"from_service": "auth", "event": "user_signed_up", "details": {"username": "Ann",
             "user": "https://auth/api/v1/users/7/"}}' | ringback rules try rules.toml -
    """
    try:
        known = load(file)
    except InvalidRulesError as error:
        raise click.ClickException("the rules are wrong.\n" + _listed(error.faults)) from None
    try:
        read = Event.model_validate_json(event.read())
    except ValidationError as error:
        faults = (
            f"{each.field}: {each.message}".removeprefix(": ") for each in field_errors(error)
        )
        raise click.ClickException("that is no event.\n" + _listed(faults)) from None
    at = read.occurred_at.timestamp() if read.occurred_at else None
    received = Received(read, read.event_id or content_id(read), at)
    try:
        decision = decide(known, received, now=time.time())
    except PermanentError as error:
        raise click.ClickException(f"dead: {error}") from None
    sent = []
    for command in decision.commands:
        type_, exchange, routing_key = ROUTES[command.kind]
        sent.append(
            {
                "type": type_,
                "exchange": exchange,
                "routing_key": routing_key,
                "id": str(command.id),
                "body": json.loads(command.body),
            }
        )
    if as_json:
        click.echo(json.dumps({"id": received.id, "verdict": decision.verdict, "commands": sent}))
        return
    click.echo(f"event {received.id}: {MEANING[decision.verdict]}")
    for each in sent:
        click.echo(_shown(each))


def _listed(faults: Any) -> str:
    return "\n".join(f"  {fault}" for fault in faults)


def _shown(sent: dict[str, Any]) -> str:
    where = f"exchange {sent['exchange']!r}" if sent["exchange"] else "the default exchange"
    head = f"{sent['type']} to {where}, routing key {sent['routing_key']!r}, id {sent['id']}"
    return f"{head}\n{json.dumps(sent['body'], indent=2, ensure_ascii=False)}"
