#!/opt/ringback/bin/python
"""`demo SANDBOX GATEWAY PAGE HTTP MANAGEMENT`: what `docker compose up` shows once all runs.

SANDBOX and GATEWAY are where containers find them; PAGE and HTTP where a person does, and
MANAGEMENT, that of RabbitMQ.
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
    sys.exit(f"The demonstration did not come to its end: {error or 'it took too long'}")
order = (
    f'{{"target_url": "{sandbox}/hooks/mine", "hmac_secret": "your-secret-key",'
    ' "payload": {"hello": "me"}}'
)
# A command a line: `up` puts the container's name before each.
click.echo(f"""
Where to look:
  try the HTTP interface  {http}docs/
  sandbox, what came      {page}
  e-mails, SMS            {page}mails, {page}sms
  RabbitMQ                {management} (user ringback)

Send one of your own, in another terminal:
  echo '{order}' | docker compose exec -T callback ringback send SendCallback
and see it at {page}?mailbox=mine . What is dead:
  docker compose exec callback ringback dead list callbacks

Everything runs. Ctrl-C stops it.""")
