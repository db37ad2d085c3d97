"""`ringback ticket`: prints a service ticket, for development."""

import json
import time

import click

from services.cli.keys import development_key
from services.cli.output import echo
from shared.clock import rfc3339
from shared.errors import PermanentError
from shared.process.configuration import configured_table
from shared.security.jwks import shared_key
from shared.security.settings import SecuritySettings
from shared.security.tickets import TicketIssuer


@click.command
@click.argument("client_id")
@click.option(
    "--expires-in",
    type=click.FloatRange(1, 10 * 365 * 86_400),
    default=3600.0,
    show_default=True,
    help="Lifetime in seconds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object with the expiry.")
def ticket(client_id: str, *, expires_in: float, as_json: bool) -> None:
    """Print a service ticket for CLIENT_ID, signed with RINGBACK_TICKET_KEY.

    Without that variable, it is signed with the key of `ringback up` in this checkout. Anyone who
    has the ticket can act as this client until it expires.

    \b
    Examples:
      ringback ticket shop
      curl -H "X-Service-Ticket: $(ringback ticket shop)" http://127.0.0.1:8080/v1/callbacks
    """
    settings = configured_table(SecuritySettings)
    key = settings.ticket_key.get_secret_value() if settings.ticket_key else _development_key()

    try:
        signed = TicketIssuer(shared_key(key)).issue(client_id, lifetime=expires_in)
    except PermanentError as error:
        raise click.ClickException(str(error)) from None
    expires_at = rfc3339(time.time() + expires_in)
    body = {"ticket": signed, "client_id": client_id, "expires_at": expires_at}
    echo(json.dumps(body) if as_json else signed)


def _development_key() -> str:
    key = development_key("ticket_key")
    if key is None:
        raise click.ClickException(
            "Cannot sign a ticket: RINGBACK_TICKET_KEY is not set. Set it to the key of the"
            " gateway, or run `ringback up`, which creates a key."
        )
    click.echo("Signed with the key of `ringback up` in this checkout.", err=True)
    return key
