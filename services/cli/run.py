"""`ringback run`: one service in this process, or in several."""

import sys
from importlib import import_module
from typing import Any

import click

from shared.process.command import Service, options
from shared.process.command import run as run_service
from shared.settings import METRICS_PORTS


def service_named(name: str) -> Service:
    """The service, imported only now."""
    service = import_module(f"services.{name}.app").SERVICE
    assert isinstance(service, Service)  # noqa: S101 - every app.py has one
    return service


@click.command
@click.argument("service", type=click.Choice(list(METRICS_PORTS)))
@options
def run(service: str, **chosen: Any) -> None:
    """Start one SERVICE and serve until SIGTERM or Ctrl-C.

    --consumer alone does only the work, --metrics alone serves only metrics; with neither, both.
    On the first signal it finishes what is in flight, at most for RINGBACK_SHUTDOWN_TIMEOUT; a
    second one stops it at once.

    \b
    Examples:
      ringback run callback
      ringback run callback --workers 2 --metrics-port 9200
      ringback run callback --no-metrics
    """
    sys.exit(run_service(service_named(service), **chosen))
