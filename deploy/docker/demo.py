#!/opt/ringback/bin/python
"""`demo SANDBOX GATEWAY PAGE HTTP MANAGEMENT`: the demonstration of `docker compose up`.

SANDBOX and GATEWAY are URLs for containers. PAGE (the sandbox), HTTP (the gateway) and MANAGEMENT
(RabbitMQ) are URLs for people.
"""

import sys

import click

from services.cli.broker import broker_settings, run_task
from services.cli.demo import show_callbacks
from services.cli.demo_postings import show_postings

sandbox, gateway, page, http, management = sys.argv[1:]


async def _both() -> None:
    await show_callbacks(broker_settings(), sandbox, gateway)
    await show_postings(broker_settings(), sandbox, gateway)


try:
    run_task(_both())
except (OSError, TimeoutError) as error:
    sys.exit(f"Cannot finish the demonstration: {error or 'it took too long'}")
command = (
    f'{{"target_url": "{sandbox}/hooks/mine", "hmac_secret": "your-secret-key",'
    ' "payload": {"hello": "me"}}'
)
# One line per command, because `up` prefixes each line with the name of the container.
click.echo(f"""
Where to look:
  HTTP API, to try    {http}docs/
  sandbox, webhooks   {page}
  e-mails, SMS        {page}mails, {page}sms
  RabbitMQ            {management} (user ringback)

Send a callback of your own in another terminal:
  echo '{command}' | docker compose exec -T callback ringback send SendCallback
It arrives at {page}?mailbox=mine . List the dead letters:
  docker compose exec callback ringback dead list callbacks

Everything is running. Press Ctrl-C to stop.""")
