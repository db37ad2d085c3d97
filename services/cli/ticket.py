"""`ringback ticket`: a service ticket to try the interfaces with."""

import json
import time

import click

from services.cli.keys import development_ticket_key
from shared.clock import rfc3339
from shared.errors import PermanentError
from shared.process.configuration import configured_table
from shared.security.settings import SecuritySettings
from shared.security.tickets import TicketIssuer


@click.command
@click.argument("client_id")
@click.option(
    "--expires-in",
    type=click.FloatRange(1, 10 * 365 * 86_400),
    default=3600.0,
    show_default=True,
    help="Seconds that it is good for.",
)
@click.option("--json", "as_json", is_flag=True, help="As a JSON object, with its end.")
def ticket(client_id: str, *, expires_in: float, as_json: bool) -> None:
    """Print a service ticket for CLIENT_ID, signed with RINGBACK_TICKET_KEY.

    Without such a key, with that of `ringback up` in this checkout. Whoever has the ticket is this
    client, until it expires.

    \b
    Examples:
      ringback ticket shop
      curl -H "X-Service-Ticket: $(ringback ticket shop)" http://127.0.0.1:8080/v1/callbacks
    """
    settings = configured_table(SecuritySettings)
    key = settings.ticket_key.get_secret_value() if settings.ticket_key else _development_key()

    try:
        signed = TicketIssuer(key).issue(client_id, lifetime=expires_in)
    except PermanentError as error:
        raise click.ClickException(str(error)) from None
    until = rfc3339(time.time() + expires_in)
    body = {"ticket": signed, "client_id": client_id, "expires_at": until}
    click.echo(json.dumps(body) if as_json else signed)


def _development_key() -> str:
    try:
        from deploy.local.daemon import CHECKOUT  # noqa: PLC0415 - not there outside a checkout

        key = development_ticket_key(CHECKOUT)
    except ImportError:
        key = None
    if key is None:
        raise click.ClickException(
            "there is no key to sign with: set RINGBACK_TICKET_KEY to that of the gateway, or let"
            " `ringback up` make one for this checkout"
        )
    click.echo("Signed with the key of `ringback up` in this checkout.", err=True)
    return key
