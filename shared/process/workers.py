"""Worker processes of one service, with a parent that serves their combined metrics.

A killed worker is restarted after a second. If a worker exits with an error, all others stop. The
parent is ready when every worker is.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from shared.errors import RingbackError
from shared.process.child import Child, running
from shared.process.run import Process
from shared.settings import PREFIX

logger = logging.getLogger(__name__)

# Seconds until a killed worker is restarted, to avoid a tight loop.
RESTART_DELAY: Final = 1.0
# Share of the shutdown timeout for the workers, so that they stop before their parent.
SHUTDOWN_SHARE: Final = 0.9


class WorkerFailedError(RingbackError):
    """A worker exited with an error. Its parent exits with the same code."""

    def __init__(self, part: str, exit_code: int) -> None:
        super().__init__(f"{part} ended with exit code {exit_code}: stopping all workers")
        self.exit_code = exit_code


class Workers:
    """`count` worker processes that run `argv`, with their metrics in `directory`."""

    def __init__(self, argv: Sequence[str], count: int, directory: Path) -> None:
        self.registry = CollectorRegistry()
        MultiProcessCollector(self.registry, path=str(directory))  # type: ignore[no-untyped-call]
        self._restarts = Counter(
            "ringback_worker_restarts",
            "Workers that were killed and restarted.",
            registry=self.registry,
        )
        self._argv = argv
        self._count = count
        self._directory = directory
        self._alive: set[Child] = set()

    async def start(self, process: Process) -> None:
        """Start the workers, and restart killed ones for as long as the process runs."""
        for number in range(1, self._count + 1):
            process.health.expect(f"worker {number}")
            process.run(self._keep(f"worker {number}", process))
        process.on_drain(self._drain)

    async def _keep(self, part: str, process: Process) -> None:
        grace = process.settings.shutdown_timeout
        environment = os.environ | {
            "PROMETHEUS_MULTIPROC_DIR": str(self._directory),
            f"{PREFIX}SHUTDOWN_TIMEOUT": str(grace * SHUTDOWN_SHARE),
        }

        def changed(child: Child) -> None:
            if child.fault is None:
                process.health.up(part)
            elif not process.stopping.is_set():
                process.health.down(part, child.fault)

        while True:
            async with running(
                self._argv, environment=environment, grace=grace, changed=changed
            ) as child:
                self._alive.add(child)
                try:
                    code = await child.wait()
                finally:
                    self._alive.discard(child)
            mark_process_dead(child.pid, str(self._directory))  # type: ignore[no-untyped-call]
            if code > 0:
                raise WorkerFailedError(part, code)
            if process.stopping.is_set():
                return
            how = f"killed by {signal.Signals(-code).name}" if code else "stopped by a signal"
            process.health.down(part, f"{how}; restarting it")
            self._restarts.inc()
            await asyncio.sleep(RESTART_DELAY)

    async def _drain(self, _: float) -> None:
        """Stop all workers and wait for them. The caller has the timeout."""
        for child in self._alive:
            child.terminate()
        await asyncio.gather(*[child.wait() for child in self._alive])
