"""The command line of a service: `ringback run NAME` and `python -m services.NAME` are the same."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
from pydantic_settings import BaseSettings

from shared.process.child import Start, reporting
from shared.process.configuration import configured
from shared.process.run import Parts, serve
from shared.process.workers import Workers
from shared.registry import SERVICES, ServiceSpec

_DEFAULT_PORTS: Final = ", ".join(
    f"{spec.metrics_port} for {name}" for name, spec in SERVICES.items()
)


@dataclass(frozen=True, slots=True)
class Service:
    """A service that can be run: its entry in the registry, its settings, and its composition root.

    start: constructs its parts and runs them in the given process.
    """

    spec: ServiceSpec
    settings: tuple[type[BaseSettings], ...]
    start: Start

    @property
    def name(self) -> str:
        """Return the name in `ringback run NAME`."""
        return self.spec.name


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `run`."""
    for option in (
        click.option("--parent-fd", "parent", type=int, hidden=True),
        click.option(
            "--workers",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Processes that consume side by side, watched over by one that serves the metrics"
            " of all.",
        ),
        click.option(
            "--metrics-port",
            type=click.IntRange(0, 65535),
            help="Where /metrics, /healthz and /readyz listen; 0 takes a free port. Default:"
            f" RINGBACK_METRICS_PORT, else {_DEFAULT_PORTS}.",
        ),
        click.option("--metrics/--no-metrics", default=None, help="Serve metrics and health."),
        click.option("--consumer/--no-consumer", default=None, help="Do the service's work."),
    ):
        command = option(command)
    return command


def alone(service: Service) -> click.Command:
    """The command that runs this one service, for `python -m`."""

    @options
    def run_alone(**chosen: Any) -> None:
        sys.exit(run(service, **chosen))

    return click.command(
        service.name,
        help=f"Run the service {service.name} until SIGTERM or Ctrl-C.\n\n"
        "--consumer alone does only the work, --metrics alone serves only metrics; with neither,"
        " both.\n\n"
        f"\b\nExample:\n  python -m {service.spec.module} --consumer --metrics --workers 2",
    )(run_alone)


def run(  # noqa: PLR0913 - the options of the command
    service: Service,
    *,
    consumer: bool | None,
    metrics: bool | None,
    metrics_port: int | None,
    workers: int,
    parent: int | None,
) -> int:
    """Run a service until it is told to stop; the exit code.

    Raises:
        click.UsageError: the options do not go together.
        WrongConfiguration: names every fault.
    """
    parts = chosen_parts(consumer=consumer, metrics=metrics, metrics_port=metrics_port)
    if workers > 1 and not parts.consumer:
        raise click.UsageError("--workers is for the consumer, which is off.")
    if workers > 1 and not service.spec.scales:
        raise click.UsageError(f"{service.name} keeps its state in memory: it runs in one process.")
    settings = configured(service.settings, storing=[service.name] if service.spec.schema else [])
    start = service.start if parent is None else reporting(service.start, parent)
    if workers == 1:
        return serve(service.name, start, settings, parts)
    with TemporaryDirectory(prefix="ringback-metrics-") as directory:
        argv = [sys.executable, "-m", service.spec.module, "--consumer"]
        team = Workers(argv, workers, Path(directory))
        start = team.start if parent is None else reporting(team.start, parent)
        return serve(service.name, start, settings, parts, registry=team.registry)


def chosen_parts(
    *, consumer: bool | None, metrics: bool | None, metrics_port: int | None = None
) -> Parts:
    """Each flag alone starts only that part; none of them, both; `--no-…` switches one off.

    Raises:
        click.UsageError: nothing is left to run.
    """
    named = bool(consumer or metrics)
    parts = Parts(
        consumer=consumer if consumer is not None else not named,
        metrics=metrics if metrics is not None else not named,
        metrics_port=metrics_port,
    )
    if not parts.consumer and not parts.metrics:
        raise click.UsageError("With both --no-consumer and --no-metrics nothing is left to run.")
    return parts
