"""The command `ringback`; `python -m services` is the same. A command is imported when it runs."""

from importlib import import_module
from typing import Final

import click

COMMANDS: Final = {
    "run": "Start one service.",
    "up": "Start everything on this machine and show the first callbacks.",
    "send": "Publish messages, validated and confirmed.",
    "schedule": "List, show, cancel and retry scheduled callbacks, through the gateway.",
    "posting": "Show how far a posting is, and list its messages, through the gateway.",
    "rules": "Check and try the rules that say what follows from events.",
    "template": "List, check and preview the templates of messages.",
    "dead": "List, show and redrive dead letters.",
    "topology": "Show, declare or check exchanges, queues and retry tiers.",
    "migrate": "Bring the database's schemas up to date.",
    "ticket": "Print a service ticket to try the interfaces with.",
    "doctor": "Check broker, database, migrations, topology and clock.",
    "config": "Write an example of the configuration.",
}


class Commands(click.Group):
    """The commands by name, each imported from its module only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, imported now; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"services.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - each module has one of its name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list for --help, which imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=Commands,
    epilog="`ringback COMMAND --help` explains each, with examples. Configuration: environment"
    " variables RINGBACK_…, over ringback.toml; see config.example.toml.",
)
@click.version_option(package_name="ringback")
def main() -> None:
    """Ringback calls you back: signed HTTP callbacks from RabbitMQ, nothing lost.

    \b
    First steps:
      ringback up               a private RabbitMQ, all services, a receiver to watch
      ringback send SendCallback order.json
      ringback dead list callbacks
    """


if __name__ == "__main__":
    main(prog_name="ringback")
