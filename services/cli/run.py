"""`ringback run`: runs one service."""

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import click
from pydantic_settings import BaseSettings

from shared.process.command import Service, options
from shared.process.command import run as run_service
from shared.registry import SERVICES


def load_service(name: str) -> Service:
    """Import the service of this name and return it."""
    service = import_module(f"{SERVICES[name].module}.app").SERVICE
    assert isinstance(service, Service)  # noqa: S101 - every app.py has one
    return service


def settings_models(names: Iterable[str] = SERVICES) -> list[type[BaseSettings]]:
    """Return the settings models of these services, each once."""
    return list(dict.fromkeys(model for name in names for model in load_service(name).settings))


@click.command(epilog=f"Services: {', '.join(SERVICES)}.")
@click.argument("service", metavar="SERVICE", type=click.Choice(list(SERVICES)))
@options
def run(service: str, **chosen: Any) -> None:
    """Run one SERVICE until SIGTERM or Ctrl-C.

    --consumer alone runs only the consumers, --metrics alone serves only metrics. Without either,
    both run. After the first signal, the service finishes work in flight within
    RINGBACK_SHUTDOWN_TIMEOUT. A second signal stops it at once.

    \b
    Examples:
      ringback run callback
      ringback run callback --workers 2 --metrics-port 9200
      ringback run callback --no-metrics
    """
    sys.exit(run_service(load_service(service), **chosen))
