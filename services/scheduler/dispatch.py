"""Fires what is due: claims it with a lease, publishes it with confirms, wakes for the next."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.scheduler import domain, metrics
from services.scheduler.clock import DatabaseClock
from services.scheduler.domain import Happened, ScheduledCallback, Step
from services.scheduler.facts import FactPublisher
from services.scheduler.notifications import NotificationPublisher
from services.scheduler.store import BEGINNING, Claim, Store
from shared.amqp.publisher import PublishRefusedError, PublishUnknownError, UnpublishableError
from shared.errors import InfrastructureError
from shared.postgres.pool import StoreConnectionLostError
from shared.security.encryption import DecryptionError

Then = Callable[[ScheduledCallback, datetime], Step]

logger = logging.getLogger(__name__)

# Seconds between two claims that did not find a full batch: what falls due meanwhile makes one
# statement and one round of confirms, far within the aim of 25 ms.
PAUSE: Final = 0.004
# Seconds until what the broker did not take is due again.
AGAIN: Final = 1.0
# Batches whose confirms are waited for while the next is claimed.
OVERLAP: Final = 4
# Seconds below what was claimed last in which a claim looks for transactions that were slow to
# commit; and between two claims that look everywhere.
MARGIN: Final = timedelta(seconds=1)
LOOK_EVERYWHERE: Final = 5.0
# Seconds for which facts wait at most while due events queue up: far below any lease.
LONGEST_TURN: Final = 2.0
# Bytes of contexts that a claim aims at: large ones come in smaller batches, so that memory stays
# bounded. A worker begins with a small batch, since it does not know what waits for it.
MOST_BYTES: Final = 16 << 20
FIRST_BATCH: Final = 50
# Seconds late from which on a dispatch is counted as a misfire.
MISFIRE: Final = 60.0


class Dispatcher:
    """Fires due events until cancelled. Several, in many processes, share the work."""

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        store: Store,
        notifier: NotificationPublisher,
        announcer: FactPublisher,
        clock: DatabaseClock,
        *,
        batch: int,
        poll: float,
    ) -> None:
        self._store = store
        self._notifier = notifier
        self._announcer = announcer
        self._clock = clock
        self._batch = batch
        self._poll = poll
        self._places = asyncio.Semaphore(OVERLAP)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._wanted = float("inf")  # when to wake up, by the loop's clock
        self._floor = BEGINNING
        self._looked_everywhere = float("-inf")
        self._draining = False
        self._fitting = min(batch, FIRST_BATCH)
        self._calm = asyncio.Event()
        self._calm.set()

    async def calm(self) -> None:
        """Wait while due events queue up, at most 2 s: what is due goes before what is done."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_TURN):
                await self._calm.wait()

    def soon(self, at: datetime) -> None:
        """Something falls due then: do not sleep longer."""
        wanted = asyncio.get_running_loop().time() + self._clock.until(at)
        if wanted < self._wanted:
            self._wanted = wanted
            self._wake.set()

    def fire(self, claims: Sequence[Claim]) -> None:
        """Publish what was claimed with its creation, at once and beside all else."""
        task = asyncio.get_running_loop().create_task(self._fire(claims))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def drain(self, grace: float) -> None:
        """Claim nothing more, and wait at most so many seconds for confirms."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)

    async def run(self) -> None:
        """Claim and fire until cancelled."""
        loop = asyncio.get_running_loop()
        while not self._draining:
            started = loop.time()
            self._wake.clear()
            self._wanted = started + self._poll
            try:
                await self._notifier.ready()
                if not self._clock.heard:
                    await self._plan()
                limit = self._fitting
                full = await self.run_once(limit) == limit
                if not full:
                    await self._plan()
            except StoreConnectionLostError as error:
                logger.warning("nothing can be claimed: %s", error)
                self._wanted, full = loop.time() + AGAIN, False
            if full:
                self._calm.clear()
            else:
                self._calm.set()
                await self._sleep(started)
        await asyncio.Event().wait()  # drained; the end is the process's to say

    async def run_once(self, limit: int) -> int:
        """Claim what is due, at most `limit`, and set its publishing going; how many.

        Raises:
            StoreConnectionLostError: it is unknown whether callbacks were claimed. They fire when
                their lease ends.
        """
        await self._places.acquire()
        try:
            claims = await self._claim(limit)
        except BaseException:
            self._places.release()
            raise
        if not claims:
            self._places.release()
            return 0
        task = asyncio.get_running_loop().create_task(self._fire(claims))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: self._places.release())
        return len(claims)

    async def _claim(self, limit: int) -> list[Claim]:
        started = time.monotonic()
        everywhere = started - self._looked_everywhere >= LOOK_EVERYWHERE
        floor = BEGINNING if everywhere else self._floor - MARGIN
        claims = await self._store.claim(limit, after=floor)
        metrics.CLAIM.observe(time.monotonic() - started)
        if len(claims) < limit:
            if everywhere:
                self._looked_everywhere = started
            # All that is due is taken: nothing older will come but by late commits.
            if claims:
                self._floor = claims[0].now
        if claims:
            size = sum(len(claim.content.context) for claim in claims) / len(claims)
            self._fitting = max(1, min(self._batch, int(MOST_BYTES / size)))
        return claims

    async def _plan(self) -> None:
        """Find out when the next event falls due."""
        sent = self._clock.sent()
        due, now = await self._store.next_due(self._poll, after=self._floor - MARGIN)
        self._clock.hear(now, sent)
        if due is not None:
            self.soon(due)

    async def _sleep(self, started: float) -> None:
        loop = asyncio.get_running_loop()
        while (rest := self._wanted - loop.time()) > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(rest):
                    await self._wake.wait()
            except TimeoutError:
                break
        await asyncio.sleep(max(started + PAUSE - loop.time(), 0.0))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Their leases will be over: nothing is lost.
            logger.critical("bug in the dispatcher", exc_info=task.exception())

    async def _fire(self, claims: Sequence[Claim]) -> None:
        steps: dict[UUID, tuple[int, Then]] = {}
        fired: list[Claim] = []
        results: list[asyncio.Future[None]] = []
        for claim in claims:
            event = claim.event
            if domain.taken(event, claim.now)[0] is not event:
                steps[event.id] = event.dispatch, domain.taken
                continue
            try:
                results.append(self._notifier.publish(claim))
            except (DecryptionError, UnpublishableError) as error:
                hopeless = isinstance(error, UnpublishableError)
                steps[event.id] = event.dispatch, _refused(str(error), final=hopeless)
            else:
                fired.append(claim)
        outcomes = await asyncio.gather(*results, return_exceptions=True)
        unpublished: list[ScheduledCallback] = []
        confirmed: list[ScheduledCallback] = []
        for claim, outcome in zip(fired, outcomes, strict=True):
            event, by_amqp = claim.event, claim.content.exchange is not None
            if outcome is None:
                confirmed.append(event)
                if by_amqp:
                    steps[event.id] = event.dispatch, _taken_by_broker
            elif by_amqp and isinstance(outcome, PublishRefusedError | PublishUnknownError):
                steps[event.id] = event.dispatch, _refused(str(outcome), final=False)
            elif isinstance(outcome, InfrastructureError):
                unpublished.append(event)
            else:
                raise outcome
        self._observe(confirmed, len(unpublished))
        await self._write(steps, unpublished)

    def _observe(self, confirmed: Sequence[ScheduledCallback], unpublished: int) -> None:
        now = self._clock.now()
        for event in confirmed:
            if event.attempts == event.retries == 0:
                lag = max((now - event.run_at).total_seconds(), 0.0)
                metrics.LAG.observe(lag)
                if lag > MISFIRE:
                    metrics.MISFIRES.labels("fire").inc()
        metrics.CONFIRMED.inc(len(confirmed))
        metrics.UNPUBLISHED.inc(unpublished)

    async def _write(
        self, steps: Mapping[UUID, tuple[int, Then]], unpublished: Sequence[ScheduledCallback]
    ) -> None:
        """Write what became of events that wait for no fact."""
        happened: list[Happened] = []
        after: list[ScheduledCallback] = []

        def decide(
            live: Mapping[UUID, ScheduledCallback], now: datetime
        ) -> list[ScheduledCallback]:
            happened.clear()
            after.clear()
            for event_id, (dispatch, then) in steps.items():
                # What is no longer in this dispatch is not ours to settle.
                if event_id in live and live[event_id].dispatch == dispatch:
                    event, told = then(live[event_id], now)
                    after.append(event)
                    if told is not None:
                        happened.append(told)
            return after

        try:
            if unpublished:
                await self._store.release(unpublished, AGAIN)
                self.soon(self._clock.now() + timedelta(seconds=AGAIN))
            if steps:
                now = await self._store.change(list(steps), decide)
                await self._announcer.tell(happened, now)
        except StoreConnectionLostError as error:
            logger.warning("left to their leases: %s", error)
            return
        for event in after:
            if not event.ended:
                self.soon(event.next_at)


def _taken_by_broker(event: ScheduledCallback, now: datetime) -> Step:
    return domain.delivered(event, event.dispatch, 1, now)


def _refused(error: str, *, final: bool) -> Then:
    def then(event: ScheduledCallback, now: datetime) -> Step:
        return domain.given_back(event, event.dispatch, 1, error, now, final=final)

    return then
