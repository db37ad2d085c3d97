"""Runs the services of `ringback up`, each in its own process."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.cli.output import echo
from shared.process.child import Child, running
from shared.process.health import STARTING
from shared.registry import SERVICES
from shared.settings import Settings

# Seconds until a killed service is started again.
RESTART_DELAY: Final = 1.0
# Number of log lines shown when a service has ended.
LOG_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class RunningService:
    """A started service, the URL of its metrics, and its log file.

    ended: returns the exit code when the service has exited by itself.
    """

    name: str
    ended: asyncio.Task[int]
    metrics: str
    log: Path
    ready: asyncio.Event


@asynccontextmanager
async def run_service(
    name: str,
    environment: Mapping[str, str],
    reserve: Callable[[int], int],
    settings: Settings,
) -> AsyncIterator[RunningService]:
    """Run a service as a child process for as long as the context lasts.

    A killed service is started again, to show that nothing is lost.
    """
    from deploy.local.daemon import LOCAL_DIRECTORY  # noqa: PLC0415 - only in a checkout

    log = LOCAL_DIRECTORY / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    port = reserve(SERVICES[name].metrics_port)
    ready = asyncio.Event()

    def changed(child: Child) -> None:
        if child.fault is None:
            show_ready(name, f"http://127.0.0.1:{port}/readyz  PID {child.pid}")
            ready.set()
        elif child.fault not in (STARTING, "draining"):
            echo(f"  {name} is not ready: {child.fault}")

    argv = [sys.executable, "-m", "services", "run", name, "--metrics-port", str(port)]

    async def keep() -> int:
        with log.open("wb") as output:
            while True:
                async with running(
                    argv,
                    environment=environment,
                    grace=settings.shutdown_timeout + 1,
                    changed=changed,
                    output=output,
                ) as child:
                    code = await child.wait()
                if code >= 0:
                    return code
                echo(f"  {name} was killed by {signal.Signals(-code).name}, and is started again")
                await asyncio.sleep(RESTART_DELAY)

    ended = asyncio.create_task(keep())
    try:
        yield RunningService(name, ended, f"http://127.0.0.1:{port}/metrics", log, ready)
    finally:
        ended.cancel()
        await asyncio.wait((ended,))


def show_ready(name: str, url: str) -> None:
    """Print that a service, or a server, is ready."""
    echo(f"  {name:<13} ready  {url}")


def describe_end(service: RunningService, code: int) -> str:
    """Return the exit code of a service that has ended, and the end of its log."""
    lines = service.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(
        [f"\n{service.name} ended with exit code {code}. The end of {service.log}:", *lines]
    )
