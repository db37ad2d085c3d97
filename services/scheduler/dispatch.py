"""Dispatches due callbacks: claims them under a lease and publishes them with confirms."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.scheduler import domain, metrics
from services.scheduler.changes import ChangeWriter
from services.scheduler.clock import DatabaseClock
from services.scheduler.domain import ScheduledCallback, Step, Transition
from services.scheduler.facts import FactPublisher
from services.scheduler.notifications import NotificationPublisher
from services.scheduler.records import Claim, Lease
from services.scheduler.store import BEGINNING, Store
from shared.amqp.backpressure import COUNT_INTERVAL, CallbackQueue
from shared.amqp.publisher import PublishRefusedError, PublishUnknownError, UnpublishableError
from shared.errors import InfrastructureError
from shared.postgres.leases import LeaseExtender
from shared.postgres.pool import StoreConnectionLostError
from shared.security.encryption import DecryptionError

NextState = Callable[[ScheduledCallback, datetime], Step]

logger = logging.getLogger(__name__)

# Seconds between two claims, unless a claim was full. Callbacks that fall due in between share one
# statement and one round of confirms. It is short compared with the target lag of 25 ms.
MIN_CLAIM_INTERVAL: Final = 0.004
# Seconds until a callback that the broker did not confirm is due again.
RETRY_DELAY: Final = 1.0
# Batches whose confirms are awaited while the next batch is claimed.
MAX_BATCHES_IN_FLIGHT: Final = 4
# A claim scans from this long before the last claim, to find transactions that committed late.
LATE_COMMIT_MARGIN: Final = timedelta(seconds=1)
# Seconds between two claims that scan the whole index.
FULL_SCAN_INTERVAL: Final = 5.0
# Maximum seconds that facts wait while due callbacks queue up. Leases are far longer.
MAX_SETTLEMENT_DELAY: Final = 2.0
# Bytes of contexts in one claim. Callbacks with large contexts are claimed in smaller batches, so
# memory stays bounded. The first batch is small because the sizes are not known yet.
MAX_BATCH_BYTES: Final = 16 << 20
FIRST_BATCH_SIZE: Final = 50
# Clients among which one shared claim finds those with due callbacks, in about 50 ms. The next one
# continues after them.
MAX_CLIENTS: Final = 5000
# A dispatch that is more seconds late counts as a misfire.
MISFIRE_THRESHOLD: Final = 60.0


class Dispatcher:
    """Dispatches due callbacks until cancelled. Dispatchers in many processes share the work."""

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        store: Store,
        notifications: NotificationPublisher,
        changes: ChangeWriter,
        leases: LeaseExtender[Lease],
        clock: DatabaseClock,
        *,
        facts: FactPublisher,
        queue: CallbackQueue,
        batch: int,
        poll: float,
    ) -> None:
        self._store = store
        self._notifications = notifications
        self._changes = changes
        self._leases = leases
        self._clock = clock
        self._facts = facts
        self._queue = queue
        self._max_batch = batch
        self._poll = poll
        self._slots = asyncio.Semaphore(MAX_BATCHES_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._wake_time = float("inf")  # by the loop's clock
        self._claimed_until = BEGINNING
        self._last_full_scan = float("-inf")
        self._draining = False
        self._claiming = asyncio.Lock()  # a drain waits for the claim in progress
        self._batch = min(batch, FIRST_BATCH_SIZE)
        self._shared_batch = self._batch
        self._backlog = False  # the last claim of the oldest callbacks was full
        self._share = False  # whether the next claim is shared by all clients
        self._next_client = ""  # where it begins
        self._no_backlog = asyncio.Event()
        self._no_backlog.set()

    async def wait_for_backlog(self) -> None:
        """Wait at most 2 s while due callbacks queue up: they go before settlements."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_SETTLEMENT_DELAY):
                await self._no_backlog.wait()

    def wake_at(self, at: datetime) -> None:
        """Claim no later than `at`, because a callback falls due then."""
        wake_time = asyncio.get_running_loop().time() + self._clock.seconds_until(at)
        if wake_time < self._wake_time:
            self._wake_time = wake_time
            self._wake.set()

    def dispatch(self, claims: Sequence[Claim]) -> None:
        """Publish callbacks that were claimed when they were created."""
        self._start(claims)

    async def drain(self, grace: float) -> None:
        """Stop claiming, and wait at most `grace` seconds for confirms."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                async with self._claiming:
                    pass
                if self._tasks:
                    await asyncio.wait(self._tasks)

    async def run(self) -> None:
        """Claim and dispatch until cancelled."""
        loop = asyncio.get_running_loop()
        while not self._draining:
            started = loop.time()
            self._wake.clear()
            self._wake_time = started + self._poll
            try:
                await self._notifications.ready()
                if not self._clock.synced:
                    await self._plan_wake()
                if not (room := await self._queue.room()):
                    self._no_backlog.set()  # settlements need not wait for a full queue
                    await asyncio.sleep(COUNT_INTERVAL)
                    continue
                async with self._claiming:
                    if not self._draining:
                        await self.run_once(min(self._batch, room))
                if not self._backlog:
                    await self._plan_wake()
            except StoreConnectionLostError as error:
                logger.warning("Cannot claim due callbacks: %s. Retrying in 1 s.", error)
                self._wake_time, self._backlog = loop.time() + RETRY_DELAY, False
            if self._backlog:
                self._no_backlog.clear()
            else:
                self._no_backlog.set()
                await self._sleep(started)
        await asyncio.Event().wait()  # drained: wait until the process cancels this task

    async def run_once(self, limit: int) -> int:
        """Claim at most `limit` due callbacks, start to publish them, and return their number.

        Raises:
            StoreConnectionLostError: it is unknown whether callbacks were claimed. They are
                dispatched when the claim expires.
        """
        await self._slots.acquire()
        try:
            claims = await self._claim(limit)
        except BaseException:
            self._slots.release()
            raise
        if not claims:
            self._slots.release()
            return 0
        self._start(claims).add_done_callback(lambda _: self._slots.release())
        return len(claims)

    async def _claim(self, limit: int) -> list[Claim]:
        if self._share:
            self._share = False
            if claims := await self._claim_shared(min(limit, self._shared_batch)):
                self._shared_batch = self._fitting(claims)
                return claims
        started = time.monotonic()
        full_scan = started - self._last_full_scan >= FULL_SCAN_INTERVAL
        after = BEGINNING if full_scan else self._claimed_until - LATE_COMMIT_MARGIN
        claims = await self._store.claim(limit, after=after)
        metrics.CLAIM.observe(time.monotonic() - started)
        self._backlog = self._share = len(claims) >= limit
        if not self._backlog:
            if full_scan:
                self._last_full_scan = started
            # Everything due is claimed. Only late commits can add older callbacks.
            if claims:
                self._claimed_until = claims[0].now
        if claims:
            self._batch = self._fitting(claims)
        return claims

    def _fitting(self, claims: Sequence[Claim]) -> int:
        """Return how many callbacks with contexts like those of these claims may be claimed."""
        mean_size = sum(len(claim.content.context) for claim in claims) / len(claims)
        return max(1, min(self._max_batch, int(MAX_BATCH_BYTES / mean_size)))

    async def _claim_shared(self, limit: int) -> list[Claim]:
        """Claim the same number of callbacks of each client, so that none waits for another."""
        start, self._next_client = self._next_client, ""  # if it fails, begin again
        clients, following = await self._store.due_clients(start, MAX_CLIENTS)
        if len(clients) > limit:
            clients, following = clients[:limit], clients[limit]
        self._next_client = following
        alone = len(clients) == 1 and start == following == ""
        if alone or not clients:  # one client has nothing to share
            return []
        return await self._store.claim_shared(clients, limit // len(clients))

    async def _plan_wake(self) -> None:
        """Read the next due time."""
        started = self._clock.start()
        after = self._claimed_until - LATE_COMMIT_MARGIN
        due, now = await self._store.next_due(self._poll, after=after)
        self._clock.sync(now, started)
        if due is not None:
            self.wake_at(due)

    async def _sleep(self, started: float) -> None:
        loop = asyncio.get_running_loop()
        while (rest := self._wake_time - loop.time()) > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(rest):
                    await self._wake.wait()
            except TimeoutError:
                break
        await asyncio.sleep(max(started + MIN_CLAIM_INTERVAL - loop.time(), 0.0))

    def _start(self, claims: Sequence[Claim]) -> asyncio.Task[None]:
        self._queue.publishing(len(claims))
        task = asyncio.get_running_loop().create_task(self._publish(claims))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Nothing is lost: the callbacks are dispatched again when their leases expire.
            logger.critical("bug in the dispatcher", exc_info=task.exception())

    async def _publish(self, claims: Sequence[Claim]) -> None:
        """Publish claims, wait for the confirms, and write the states that no fact will settle."""
        steps: dict[UUID, tuple[int, NextState]] = {}
        published: list[Claim] = []
        results: list[asyncio.Future[None]] = []
        for claim in claims:
            try:
                result = self._publish_one(claim)
            except Exception:  # a bug: the callback must not block the others of its claim
                context = {"schedule_id": str(claim.callback.id)}
                logger.exception("bug in a dispatch", extra=context)
                continue
            if isinstance(result, asyncio.Future):
                published.append(claim)
                results.append(result)
            else:
                steps[claim.callback.id] = claim.callback.dispatch, result
        outcomes = await asyncio.gather(*results, return_exceptions=True)
        unpublished: list[ScheduledCallback] = []
        confirmed: list[Claim] = []
        for claim, outcome in zip(published, outcomes, strict=True):
            callback, by_amqp = claim.callback, claim.content.exchange is not None
            if outcome is None:
                confirmed.append(claim)
                if by_amqp:
                    steps[callback.id] = callback.dispatch, _delivered_to_broker
            elif by_amqp and isinstance(outcome, PublishRefusedError | PublishUnknownError):
                failed = _dispatch_failed(str(outcome), attempt=1, final=False)
                steps[callback.id] = callback.dispatch, failed
            elif isinstance(outcome, InfrastructureError):
                unpublished.append(callback)
            else:
                raise outcome
        self._leases.add(
            [
                Lease(claim.callback.id, claim.callback.dispatch, claim.lease)
                for claim in confirmed
                if claim.callback.id not in steps
            ]
        )
        self._observe(confirmed, len(unpublished))
        await self._write(steps, unpublished)

    def _publish_one(self, claim: Claim) -> asyncio.Future[None] | NextState:
        """Publish a claim, or return its next state if it is not to be published."""
        callback = claim.callback
        if domain.claimed(callback, claim.now)[0] is not callback:
            return domain.claimed
        try:
            return self._notifications.publish(claim)
        except (DecryptionError, UnpublishableError) as error:
            final = isinstance(error, UnpublishableError)
            return _dispatch_failed(str(error), attempt=0, final=final)

    def _observe(self, confirmed: Sequence[Claim], unpublished: int) -> None:
        now = self._clock.now()
        for claim in confirmed:
            callback = claim.callback
            if callback.earlier_attempts == callback.main_retries == 0:
                first = callback.dispatch == callback.first_dispatch
                due_at = claim.due_at if first else callback.run_at
                lag = max((now - due_at).total_seconds(), 0.0)
                metrics.LAG.observe(lag)
                if lag > MISFIRE_THRESHOLD:
                    metrics.MISFIRES.labels("fire").inc()
        if confirmed:
            self._facts.dispatched(confirmed, now)
        metrics.CONFIRMED.inc(len(confirmed))
        metrics.UNPUBLISHED.inc(unpublished)

    async def _write(
        self, steps: Mapping[UUID, tuple[int, NextState]], unpublished: Sequence[ScheduledCallback]
    ) -> None:
        """Release unpublished claims, and write the states that no fact will settle."""

        def next_state(
            callback: ScheduledCallback, now: datetime
        ) -> tuple[ScheduledCallback, Sequence[Transition]]:
            dispatch, step = steps[callback.id]
            if callback.dispatch != dispatch:  # a later dispatch belongs to another claim
                return callback, ()
            after, transition = step(callback, now)
            return after, () if transition is None else (transition,)

        changed: Sequence[ScheduledCallback] = ()
        try:
            if unpublished:
                await self._store.release(unpublished, RETRY_DELAY)
                self.wake_at(self._clock.now() + timedelta(seconds=RETRY_DELAY))
            if steps:
                changed = (await self._changes.write(list(steps), next_state)).changed
        except StoreConnectionLostError as error:
            logger.warning(
                "Cannot save the dispatch results: %s."
                " The callbacks are dispatched again when their leases expire.",
                error,
            )
            return
        for callback in changed:
            if not callback.finished:
                self.wake_at(callback.next_at)


def _delivered_to_broker(callback: ScheduledCallback, now: datetime) -> Step:
    return domain.delivered(callback, callback.dispatch, 1, now)


def _dispatch_failed(reason: str, *, attempt: int, final: bool) -> NextState:
    def next_state(callback: ScheduledCallback, now: datetime) -> Step:
        dispatch = callback.dispatch
        return domain.dispatch_failed(callback, dispatch, attempt, reason, now, final=final)

    return next_state
