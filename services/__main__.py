"""The command `ringback`; `python -m services` is the same. A command is imported when it runs."""

from importlib import import_module
from typing import Final

import click

COMMANDS: Final = {
    "run": "Run one service.",
    "up": "Start everything on this machine, with a demonstration.",
    "send": "Validate messages and publish them with confirms.",
    "schedule": "List, show, cancel and retry scheduled callbacks, through the gateway.",
    "timeline": "Show the story of a callback, through the gateway.",
    "posting": "List postings, and show their progress and messages, through the gateway.",
    "clients": "Import and list the clients of mailings, through the gateway.",
    "report": "Print the daily report about mailings.",
    "rules": "Check the rules for events, and try them on an event.",
    "template": "List, check and preview message templates.",
    "trace": "Print what the logs say about a mailing, a message or a recipient.",
    "dead": "List, show and redrive dead letters.",
    "simulate": "Show what would happen with given targets, rates, failures and retries.",
    "bench": "Measure an installation: rates, delays, repeats and losses.",
    "topology": "Show, declare or check exchanges, queues and retry tiers.",
    "migrate": "Apply the database migrations.",
    "secrets": "Encrypt stored secrets with a new key.",
    "keys": "Create and show the keys that sign Ringback's service tickets.",
    "ticket": "Print a service ticket, for development.",
    "doctor": "Check settings, broker, topology, database, migrations and clocks.",
    "config": "Print an example configuration.",
}


class Commands(click.Group):
    """The commands by name. A command is imported only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return all names in the usual order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command, or return None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"services.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - each module defines the command of its name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=Commands,
    epilog="`ringback COMMAND --help` explains a command, with examples. Configuration comes from"
    " ringback.toml and from environment variables RINGBACK_…, which override the file.",
)
@click.version_option(package_name="ringback")
def main() -> None:
    """Webhook delivery, scheduled callbacks and notifications on RabbitMQ and PostgreSQL.

    \b
    First steps:
      ringback up                                start everything, with a demonstration
      ringback send SendCallback callback.json   send a webhook
      ringback dead list callbacks               list webhooks that failed for good
    """


if __name__ == "__main__":
    main(prog_name="ringback")
