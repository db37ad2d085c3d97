"""`python -m deploy.local`: the private RabbitMQ and PostgreSQL of this checkout."""

import shlex
import sys

import click

from deploy.local.broker import Broker
from deploy.local.daemon import CHECKOUT, LocalStackError, remove
from deploy.local.database import Database
from deploy.local.install import rabbitmq
from deploy.local.stack import DIRECTORY, reserve, start_servers
from deploy.local.watchdog import remove_abandoned


@click.group()
def main() -> None:
    """The private RabbitMQ and PostgreSQL of this checkout.

    They listen on 127.0.0.1 only, on free ports. Their data is below .ringback/. They share nothing
    with another RabbitMQ or PostgreSQL on this machine. `ringback up` starts and stops them; these
    commands are for using them alone.
    """


@main.command()
def start() -> None:
    """Start them, unless they run, and print the variables that select them.

    For this shell: eval "$(python -m deploy.local start)"
    """
    with reserve():
        stack = start_servers()
    for name, value in stack.environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")
    if stack.management_url:
        click.echo(f"RabbitMQ management page: {stack.management_url} (guest, guest)", err=True)


@main.command()
def stop() -> None:
    """Stop them and keep their data."""
    with reserve():
        Broker(DIRECTORY / "broker").stop()
        Database(DIRECTORY / "database").stop()


@main.command()
def status() -> None:
    """Show whether they run, and their URLs. Exit code 1 if one does not run."""
    servers: dict[str, Broker | Database] = {
        "RabbitMQ": Broker(DIRECTORY / "broker"),
        "PostgreSQL": Database(DIRECTORY / "database"),
    }
    for name, server in servers.items():
        pid = server.pid
        click.echo(f"{name}: " + (f"{server.url} (PID {pid})" if pid else "not running"))
    sys.exit(not all(server.pid for server in servers.values()))


@main.command()
def clean() -> None:
    """Stop them and delete their data."""
    with reserve():
        remove(DIRECTORY)
    remove(CHECKOUT / ".ringback" / "postgresql")
    remove_abandoned()


@main.command()
def install() -> None:
    """Install RabbitMQ (Debian's package) if it is missing. `start` does that too."""
    click.echo(f"RabbitMQ: {rabbitmq().scripts}")


if __name__ == "__main__":
    try:
        main()
    except LocalStackError as error:
        sys.exit(f"{error}")
