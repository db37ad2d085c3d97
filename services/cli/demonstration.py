"""The demonstration of `ringback up` and of `docker compose up`."""

from dataclasses import dataclass

import click

from services.cli.demo import show_callbacks
from services.cli.demo_console import show_console
from services.cli.demo_mailings import show_mailings
from services.cli.demo_postings import show_postings
from services.cli.demo_subscriptions import show_subscriptions
from services.cli.output import echo
from services.delivery.settings import DeliverySettings
from services.mailings.settings import MailingsSettings
from shared.settings import Settings, load, variable_of


@dataclass(frozen=True, slots=True)
class Places:
    """The URLs of a demonstration: `sandbox` and `gateway` for programs, the others for people.

    page: the sandbox, as a browser on this machine reaches it.
    console: the console.
    """

    sandbox: str
    gateway: str
    page: str
    console: str


async def demonstrate(
    settings: Settings, places: Places, *, movies_event: str, real: list[str]
) -> None:
    """Show callbacks, e-mails and SMS, mailings, users and endpoints, and the console.

    movies_event: the id of the event that sends an e-mail to every subscriber.
    real: settings that name real servers. With any, no e-mail and no SMS is part of it.

    Raises:
        click.ClickException: a step failed or took too long.
    """
    try:
        draft = None
        failed_twice = await show_callbacks(settings, places.sandbox, places.gateway)
        if real:
            echo(
                f"\nParts 2 and 3, e-mails and SMS, are not shown: {', '.join(real)} is set, and"
                " the demonstration must not reach real servers."
            )
        else:
            await show_postings(settings, places.sandbox, places.gateway, places.page, movies_event)
            draft = await show_mailings(places.gateway, places.page)
        await show_subscriptions(places.sandbox, places.gateway, places.page)
        await show_console(places.gateway, places.console, failed_twice, draft)
    except Exception as error:
        reason = error.message if isinstance(error, click.ClickException) else str(error)
        raise click.ClickException(
            "Cannot finish the demonstration:"
            f" {reason or f'it took too long ({type(error).__name__})'}"
        ) from error


def real_servers() -> list[str]:
    """Return the variables of the configured servers that could receive a demonstration."""
    delivery, mailings = load(DeliverySettings), load(MailingsSettings)
    values = {
        variable_of(DeliverySettings, "smtp_url"): delivery.smtp_url,
        variable_of(DeliverySettings, "sms_url"): delivery.sms_url,
        variable_of(MailingsSettings, "sources"): mailings.sources,
    }
    return [variable for variable, value in values.items() if value]
