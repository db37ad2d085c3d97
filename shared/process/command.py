"""The command that runs a service: `ringback run NAME` or `python -m services.NAME`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
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
from shared.settings import Required

_DEFAULT_PORTS: Final = ", ".join(
    f"{spec.metrics_port} for {name}" for name, spec in SERVICES.items()
)


@dataclass(frozen=True, slots=True)
class Service:
    """A service that can be run: its entry in the registry, its settings, and its composition root.

    start: constructs its parts and runs them in the given process.
    required: settings that `start` needs, although they have no default.
    """

    spec: ServiceSpec
    settings: tuple[type[BaseSettings], ...]
    start: Start
    required: Required = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name in `ringback run NAME`."""
        return self.spec.name


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `run` to a command."""
    for option in (
        click.option("--parent-fd", "parent", type=int, hidden=True),
        click.option(
            "--workers",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Number of consumer processes. One more process serves their metrics.",
        ),
        click.option(
            "--metrics-port",
            type=click.IntRange(0, 65535),
            help="Port of /metrics, /healthz and /readyz; 0 chooses a free one. Default:"
            f" RINGBACK_METRICS_PORT, otherwise {_DEFAULT_PORTS}.",
        ),
        click.option(
            "--metrics/--no-metrics", default=None, help="Serve metrics and health checks."
        ),
        click.option(
            "--consumer/--no-consumer", default=None, help="Run the service's consumers and loops."
        ),
    ):
        command = option(command)
    return command


def service_command(service: Service) -> click.Command:
    """Return the command of one service, for `python -m`."""

    @options
    def command(**chosen: Any) -> None:
        sys.exit(run(service, **chosen))

    return click.command(
        service.name,
        help=f"Run the service {service.name} until SIGTERM or Ctrl-C.\n\n"
        "--consumer alone runs only the consumers, --metrics alone serves only metrics. Without"
        " either, both run.\n\n"
        f"\b\nExample:\n  python -m {service.spec.module} --consumer --metrics --workers 2",
    )(command)


def run(  # noqa: PLR0913 - the options of the command
    service: Service,
    *,
    consumer: bool | None,
    metrics: bool | None,
    metrics_port: int | None,
    workers: int,
    parent: int | None,
) -> int:
    """Run a service until a signal, and return the exit code.

    Raises:
        click.UsageError: the options conflict.
        InvalidConfigurationError: the configuration is wrong.
    """
    parts = chosen_parts(consumer=consumer, metrics=metrics, metrics_port=metrics_port)
    if workers > 1 and not parts.consumer:
        raise click.UsageError("--workers needs the consumer, which is off.")
    if workers > 1 and not service.spec.scales:
        raise click.UsageError(
            f"{service.name} has its state in memory, so it cannot run in several processes."
        )
    settings = configured(
        service.settings,
        storing=[service.name] if service.spec.schema else [],
        required=service.required if parts.consumer else None,
    )
    start = service.start if parent is None else reporting(service.start, parent)
    if workers == 1:
        return serve(service.name, start, settings, parts)
    with TemporaryDirectory(prefix="ringback-metrics-") as directory:
        argv = [sys.executable, "-m", service.spec.module, "--consumer"]
        worker_processes = Workers(argv, workers, Path(directory))
        start = (
            worker_processes.start if parent is None else reporting(worker_processes.start, parent)
        )
        return serve(service.name, start, settings, parts, registry=worker_processes.registry)


def chosen_parts(
    *, consumer: bool | None, metrics: bool | None, metrics_port: int | None = None
) -> Parts:
    """Return the parts to run: those that a flag names, otherwise both, without `--no-…`.

    Raises:
        click.UsageError: both parts are off.
    """
    named = bool(consumer or metrics)
    parts = Parts(
        consumer=consumer if consumer is not None else not named,
        metrics=metrics if metrics is not None else not named,
        metrics_port=metrics_port,
    )
    if not parts.consumer and not parts.metrics:
        raise click.UsageError("Nothing to run: both --no-consumer and --no-metrics are given.")
    return parts
