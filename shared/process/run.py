"""The lifecycle of a service: start, serve until a signal, drain, exit."""

import asyncio
import gc
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry

from shared.errors import RingbackError
from shared.process import logs
from shared.process.configuration import unknown_variables
from shared.process.health import Health
from shared.process.metrics import serving
from shared.registry import SERVICES
from shared.settings import Settings

new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with suppress(ImportError):  # the extra `fast` may not be installed
    from uvloop import new_event_loop

logger = logging.getLogger(__name__)

# The share of the shutdown timeout that is kept for closing connections, and its limit in seconds.
_CLOSE_SHARE: Final = 0.2
_MAX_CLOSE_RESERVE: Final = 2.0
# The share of the time to drain that is reserved for each later part. The first parts finish work
# in flight, the later ones only send its results.
_LATER_SHARE: Final = 0.1

# File descriptors that a process may open. Each of at most 65,535 messages in flight needs one.
MAX_FILES: Final = 131_072

Drain = Callable[[float], Awaitable[None]]


class TracingUnavailableError(RingbackError):
    """Tracing is configured, but OpenTelemetry is not installed."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a service that run in this process, and the port of the metrics."""

    consumer: bool = True
    metrics: bool = True
    metrics_port: int | None = None


class Process:
    """A running service. `start` in its app.py gets it and adds the parts."""

    def __init__(self, name: str, settings: Settings, health: Health) -> None:
        self.name = name
        self.settings = settings
        self.health = health
        self.stack = AsyncExitStack()
        self.stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._drains: list[Drain] = []

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` for as long as the process. If it ends by itself, the process exits with 1."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda _: self.stopping.set())
        self._tasks.append(task)

    def on_drain(self, drain: Drain) -> None:
        """Call `drain` when the process stops, with the seconds it may take."""
        self._drains.append(drain)

    async def stop(self) -> int:
        """Drain, cancel all tasks, and return the exit code: 0 if no task has ended or failed."""
        self.health.drain()
        grace = self.settings.shutdown_timeout
        failed = [task for task in self._tasks if task.done()]
        try:
            async with asyncio.timeout(grace):
                drains = [] if failed else self._drains
                loop = asyncio.get_running_loop()
                total = drain_time(grace)
                end = loop.time() + total
                for others, drain in zip(reversed(range(len(drains))), drains, strict=True):
                    left = max(end - loop.time(), 0.0)
                    await drain(max(left - others * _LATER_SHARE * total, left / (others + 1)))
        except TimeoutError:
            logger.warning(
                "not drained within %g s; remaining messages return to their queue", grace
            )
        failed += [t for t in self._tasks if t not in failed and t.done() and t.exception()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return max((_explain(task) for task in failed), default=0)


def drain_time(grace: float) -> float:
    """Return the seconds of a shutdown timeout until connections are closed."""
    return grace - min(_CLOSE_SHARE * grace, _MAX_CLOSE_RESERVE)


def _explain(task: asyncio.Task[None]) -> int:
    """Log why the task ended, and return the exit code for it."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, RingbackError):
        for fault in getattr(error, "faults", (str(error),)):
            logger.critical("%s", fault)
    else:
        logger.critical("a part of the service ended unexpectedly", exc_info=error)
    return getattr(error, "exit_code", 1)


async def _serve(
    process: Process,
    start: Callable[[Process], Awaitable[None]],
    parts: Parts,
    registry: CollectorRegistry,
) -> int:
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        if process.stopping.is_set():
            logger.warning("second signal: stopping at once")
            os._exit(128 + number)
        logger.info("stopping on %s", signal.Signals(number).name)
        process.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    async with process.stack as stack:
        if parts.consumer:
            await start(process)
        if parts.metrics:
            port = await stack.enter_async_context(
                serving(
                    process.settings.metrics_host,
                    _port(process, parts),
                    ready=lambda: (process.health.ready, process.health.report()),
                    registry=registry,
                )
            )
            logger.info("metrics on port %d", port, extra={"port": port})
        # Objects that exist now are long-lived, so the garbage collector skips them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        await process.stopping.wait()
        code = await process.stop()
    logger.info("stopped")
    return code


def _port(process: Process, parts: Parts) -> int:
    for port in (parts.metrics_port, process.settings.metrics_port):
        if port is not None:
            return port
    return SERVICES[process.name].metrics_port


def raise_file_limit() -> None:
    """Raise the limit of open files. The usual one of 1,024 is too low for many targets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


@contextmanager
def _tracing(name: str, endpoint: str | None) -> Iterator[None]:
    """Trace this process if a collector is configured.

    Raises:
        TracingUnavailableError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        yield
        return
    try:
        from shared.tracing.export import exporting  # noqa: PLC0415 - only while tracing is on
    except ImportError as error:
        raise TracingUnavailableError(
            f"Cannot trace: {error.name} is not installed. Install ringback[otel], or unset"
            " OTEL_EXPORTER_OTLP_ENDPOINT."
        ) from error
    with exporting(name, endpoint):
        yield


def serve(
    name: str,
    start: Callable[[Process], Awaitable[None]],
    settings: Settings,
    parts: Parts,
    registry: CollectorRegistry = REGISTRY,
) -> int:
    """Run a service in this process until SIGTERM or SIGINT, and return the exit code.

    A second signal stops at once. If a part fails or a port is taken, the exit code is that of the
    error, by default 1.
    """
    logs.configure(name, level=settings.log_level, form=settings.log_format)
    for variable in unknown_variables():
        logger.warning("setting unknown", extra={"variable": variable})
    raise_file_limit()
    process = Process(name, settings, Health())
    try:
        with (
            _tracing(name, settings.otlp_endpoint),
            asyncio.Runner(loop_factory=new_event_loop) as runner,
        ):
            return runner.run(_serve(process, start, parts, registry))
    except (OSError, RingbackError) as error:
        logger.critical("cannot start: %s", error)
        return getattr(error, "exit_code", 1)
