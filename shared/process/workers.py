"""Several worker processes of one service under one parent, which serves their common metrics.

A worker that is killed is started again after a second; one that ends by itself with an error ends
them all. The parent is ready when every worker is.
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

# Seconds: a worker that can't live is not started in a tight loop.
RESTART_DELAY: Final = 1.0
# The workers' part of the time to shut down: they are done before their parent's time is over.
SHARE: Final = 0.9


class WorkerFailedError(RingbackError):
    """A worker ended by itself with an error; its parent ends with the same exit code."""

    def __init__(self, part: str, exit_code: int) -> None:
        super().__init__(f"{part} ended with exit code {exit_code}: ending the others, too")
        self.exit_code = exit_code


class Workers:
    """The workers of one service: `count` processes of `argv`, their metrics in `directory`."""

    def __init__(self, argv: Sequence[str], count: int, directory: Path) -> None:
        self.registry = CollectorRegistry()
        MultiProcessCollector(self.registry, path=str(directory))  # type: ignore[no-untyped-call]
        self._restarts = Counter(
            "ringback_worker_restarts",
            "Workers that were killed and started again.",
            registry=self.registry,
        )
        self._argv = argv
        self._count = count
        self._directory = directory
        self._alive: set[Child] = set()

    async def start(self, process: Process) -> None:
        """Start them and keep them running as long as the process."""
        for number in range(1, self._count + 1):
            process.health.expect(f"worker {number}")
            process.run(self._keep(f"worker {number}", process))
        process.on_drain(self._drain)

    async def _keep(self, part: str, process: Process) -> None:
        grace = process.settings.shutdown_timeout
        environment = os.environ | {
            "PROMETHEUS_MULTIPROC_DIR": str(self._directory),
            f"{PREFIX}SHUTDOWN_TIMEOUT": str(grace * SHARE),
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
            how = f"killed by {signal.Signals(-code).name}" if code else "stopped from outside"
            process.health.down(part, f"{how}; starting it again")
            self._restarts.inc()
            await asyncio.sleep(RESTART_DELAY)

    async def _drain(self, _: float) -> None:
        """Pass the signal on and wait for all; the process bounds the time."""
        for child in self._alive:
            child.terminate()
        await asyncio.gather(*[child.wait() for child in self._alive])
