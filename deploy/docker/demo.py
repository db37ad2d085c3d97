#!/opt/ringback/bin/python
"""`demo SANDBOX GATEWAY PAGE HTTP MANAGEMENT CONSOLE`: the demonstration of `docker compose up`.

SANDBOX and GATEWAY are URLs for containers. PAGE (the sandbox), HTTP (the gateway), MANAGEMENT
(RabbitMQ) and CONSOLE are URLs for people.
"""

import click

from services.cli.broker import broker_settings, run_task
from services.cli.demo_postings import was_shown
from services.cli.demonstration import Places, demonstrate, real_servers

# The id of an event. The database keeps it, so a later `up` shows only the URLs.
SHOWN = "demonstration"


@click.command
@click.argument("sandbox")
@click.argument("gateway")
@click.argument("page")
@click.argument("http")
@click.argument("management")
@click.argument("console")
def demo(  # noqa: PLR0913, PLR0917 - the URLs
    sandbox: str, gateway: str, page: str, http: str, management: str, console: str
) -> None:
    """Show the demonstration, unless this database has seen it, and all URLs."""

    async def show_once() -> None:
        if await was_shown(gateway, SHOWN):
            click.echo("The demonstration was shown before. See docs/docker.md.")
            return
        places = Places(sandbox, gateway, page, console)
        await demonstrate(broker_settings(), places, movies_event=SHOWN, real=real_servers())

    run_task(show_once())
    command = (
        f'{{"target_url": "{sandbox}/hooks/mine", "hmac_secret": "your-secret-key",'
        ' "payload": {"hello": "me"}}'
    )
    # One line per command, because `up` prefixes each line with the name of the container.
    click.echo(f"""
Where to look:
  console             {console}/
  HTTP API, to try    {http}/docs/
  sandbox, webhooks   {page}/
  e-mails, SMS        {page}/mails, {page}/sms
  RabbitMQ            {management}/ (user ringback)

Send a callback of your own in another terminal:
  echo '{command}' | docker compose exec -T callback ringback send SendCallback
It arrives at {page}/?mailbox=mine . List the dead letters:
  docker compose exec callback ringback dead list callbacks

Everything is running. Press Ctrl-C to stop.""")


demo()
