"""Works on jobs: claims one, and takes steps at its rate until it ends or is cancelled.

A step commits what it has done together with the counts of the job. So after a kill another process
continues with exact counts. A step in progress is never interrupted, only not followed by another.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Final

from services.journal.jobs.store import ClaimedJob, Jobs, LeaseLostError, StoredJob
from shared.amqp.connection import CONNECTION_ERRORS, describe_error, is_cancelled
from shared.contracts.journal import JobKind, JobStatus
from shared.errors import InfrastructureError, PermanentError

logger = logging.getLogger(__name__)

# Jobs of one process at a time. Most of them wait for the next step.
MAX_JOBS: Final = 32
# Steps of one process at a time, so that connections to the database remain for the facts.
MAX_STEPS: Final = 4
# Seconds between two searches for a job that another process has left.
POLL_INTERVAL: Final = 1.0
# Seconds between two renewals of a lease. They also notice a cancel, which must take effect within
# a second.
WATCH_INTERVAL: Final = 0.4
# Steps per second at a rate below MAX_STEP times this.
STEPS_PER_SECOND: Final = 4
# Items of one step. A kill repeats at most one step.
MAX_STEP: Final = 100
# Seconds until a job continues after a fault.
RETRY_DELAY: Final = 1.0
# Seconds of delay that a job may catch up on, such as a slow step.
MAX_BEHIND: Final = 1.0

# Does at most this many items, and commits them with the counts of the job. It returns how many it
# did, or None at the end.
Step = Callable[[int], Awaitable[int | None]]
# Opens what the steps of a job need. It is opened again after an InfrastructureError or a lost
# connection.
Work = Callable[[ClaimedJob], AbstractAsyncContextManager[Step]]


class JobWorker:
    """Works on up to MAX_JOBS jobs at a time. `works` has the work of each kind."""

    def __init__(self, jobs: Jobs, works: Mapping[JobKind, Work]) -> None:
        self._jobs = jobs
        self._works = works
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_JOBS)
        self._steps = asyncio.Semaphore(MAX_STEPS)
        self._draining = False
        self._running: dict[asyncio.Task[None], asyncio.Event] = {}

    def wake(self) -> None:
        """Search for a job now."""
        self._wake.set()

    async def run(self) -> None:
        """Work on jobs until cancelled."""
        try:
            while True:
                await self._slots.acquire()
                claimed = await self._next()
                stop = asyncio.Event()
                task = asyncio.create_task(self._work(claimed, stop))
                self._running[task] = stop
                task.add_done_callback(self._ended)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def drain(self, grace: float) -> None:
        """Finish the steps in progress, and leave the jobs to other processes."""
        self._draining = True
        for stop in self._running.values():
            stop.set()
        if self._running:
            await asyncio.wait(self._running, timeout=grace)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("bug in the job worker", exc_info=error)

    async def _next(self) -> ClaimedJob:
        while True:
            self._wake.clear()
            if not self._draining:
                try:
                    claimed = await self._jobs.claim()
                except InfrastructureError as error:
                    logger.warning("Cannot claim a job: %s. Retrying.", error)
                else:
                    if claimed is not None:
                        return claimed
            await _wait(self._wake, POLL_INTERVAL)

    async def _work(self, claimed: ClaimedJob, stop: asyncio.Event) -> None:
        job = claimed.job
        logger.info("job claimed", extra=_about(job) | {"continued": claimed.continued})
        watching = asyncio.create_task(self._watch(job, stop))
        try:
            while not stop.is_set() and not await self._is_over(claimed, stop):
                claimed = replace(claimed, continued=True)
                await _wait(stop, RETRY_DELAY)
        finally:
            watching.cancel()
        if self._draining:
            with suppress(InfrastructureError):
                await self._jobs.release(job)

    async def _is_over(self, claimed: ClaimedJob, stop: asyncio.Event) -> bool:
        """Take steps until the end, and return True; or False after a fault that passes."""
        job = claimed.job
        try:
            async with self._works[job.kind](claimed) as step:
                if await _take_steps(self._bounded(step), job.rate, stop):
                    await self._jobs.finish(job, JobStatus.FINISHED)
                    logger.info("job finished", extra=_about(job))
        except LeaseLostError:
            pass
        except (InfrastructureError, *CONNECTION_ERRORS) as error:
            self._report(job, error)
            return False
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            self._report(job, error)
            return False
        except PermanentError as error:
            await self._jobs.finish(job, JobStatus.FAILED, str(error))
            logger.warning("job failed: %s", error, extra=_about(job))
        except Exception as error:
            logger.exception("bug in a job", extra=_about(job))
            text = f"internal error: {type(error).__name__}"
            await self._jobs.finish(job, JobStatus.FAILED, text)
        return True

    def _bounded(self, step: Step) -> Step:
        async def bounded(limit: int) -> int | None:
            async with self._steps:
                return await step(limit)

        return bounded

    def _report(self, job: StoredJob, error: BaseException) -> None:
        logger.warning("job interrupted: %s", describe_error(error), extra=_about(job))

    async def _watch(self, job: StoredJob, stop: asyncio.Event) -> None:
        """Renew the lease, and stop when the job was cancelled or the lease is lost."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            try:
                status = await self._jobs.renew(job)
            except InfrastructureError:
                continue  # each step compares the lease
            if status is not JobStatus.RUNNING:
                stop.set()
                return


async def _take_steps(step: Step, rate: float, stop: asyncio.Event) -> bool:
    """Take steps at a rate per second. Return whether they have reached the end."""
    now = asyncio.get_running_loop().time
    limit = min(max(int(rate / STEPS_PER_SECOND), 1), MAX_STEP)
    due = now()
    while not stop.is_set():
        count = await step(limit)
        if count is None:
            return True
        due = max(due, now() - MAX_BEHIND) + count / rate
        await _wait(stop, due - now())
    return False


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most for some seconds."""
    if seconds <= 0:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _about(job: StoredJob) -> dict[str, object]:
    return {"job_id": str(job.id), "kind": job.kind.value, "queue": job.queue}
