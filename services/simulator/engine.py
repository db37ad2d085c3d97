"""The simulation: a queue of events in virtual time, around the decisions of production.

Lanes, breakers, retries, tiers and main retries are the code of the services. Only the broker, the
receivers and the passing of time are simulated. The same scenario and seed give the same result.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, Final

from services.callback import domain
from services.callback.settings import CallbackSettings
from services.simulator.callbacks import (
    Callback,
    Source,
    begin_dispatch,
    end_dispatch,
    new_callback,
    policy_of,
)
from services.simulator.figures import (
    ATTEMPTS,
    DEAD,
    DELIVERED,
    MESSAGES,
    Course,
    Result,
    TargetFigures,
)
from services.simulator.receivers import Receiver, Reply
from services.simulator.scenario import Scenario
from shared.errors import DeferredError, PermanentError, TransientError
from shared.resilience.lanes import STALL_TIMEOUT, Lane, Lanes
from shared.resilience.retry import GiveUp, decide, defer, next_hop
from shared.topology import CALLBACKS, Tier, tiers_of

# Depths of a course in addition to the tiers: main retries wait in the scheduler's database.
MAIN_RETRIES: Final = "main retries"
# Events between two reports of the progress, about 50 ms.
_PROGRESS_EVENTS: Final = 5000

Entering = Coroutine[Any, Any, bool]


@dataclass(slots=True, eq=False)
class _Worker:
    """A process of the callback service. held: the messages in its prefetch window."""

    lanes: Lanes
    held: int = 0
    queued: dict[Lane, deque[tuple[asyncio.Future[None], Entering, Callback]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An attempt in flight. probe: it is the probe of an open breaker."""

    worker: _Worker
    lane: Lane
    callback: Callback
    probe: bool
    reply: Reply

    def check(self, now: float) -> None:
        """Check that the receiver accepts the callback.

        Raises:
            TransientError: it does not, now.
            PermanentError: it refuses for good.
        """
        if self.reply.status is None:
            raise TransientError("no response")
        domain.check_response(self.reply.status, self.reply.retry_after, now=now)


async def simulate(
    scenario: Scenario,
    settings: CallbackSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> Result:
    """Run a simulation until all callbacks have ended, at most until the scenario's end.

    progress: called from time to time with the number of callbacks that have ended.
    """
    return await _Simulation(scenario, settings).run(progress)


class _Simulation:
    def __init__(self, scenario: Scenario, settings: CallbackSettings) -> None:
        self._end = scenario.end
        self._prefetch = settings.prefetch
        self._random = Random(scenario.seed)  # noqa: S311 - not a secret
        self._tiers = tiers_of(CALLBACKS)
        self._waiting: dict[str, deque[tuple[float, Callback]]] = {
            tier.name: deque() for tier in self._tiers
        }
        self._ready: deque[Callback] = deque()
        self._main_retries = 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._now = 0.0
        self._finished = 0
        self._ticking = False
        self._total = (TargetFigures("all"),) if len(scenario.targets) > 1 else ()
        self._course = Course([CALLBACKS, *self._waiting, MAIN_RETRIES])
        self._workers = [
            _Worker(
                Lanes(
                    max_in_flight=settings.lane_limit,
                    prefetch=settings.prefetch,
                    max_failures=settings.breaker_failures,
                    clock=lambda: self._now,
                    observe=lambda *_: None,
                    report_full=lambda *_: None,
                )
            )
            for _ in range(scenario.workers)
        ]
        self._turn = 0
        self._sources = [
            Source(
                target,
                scenario.rate_of(target),
                scenario.callbacks_of(target),
                policy_of(target, settings),
                Receiver(target, settings, self._random),
                (TargetFigures(target.name), *self._total),
            )
            for target in scenario.targets
        ]

    async def run(self, progress: Callable[[int], None]) -> Result:
        for source in self._sources:
            if source.callbacks:
                self._at(0.0, self._arrive, source, 0)
        events = 0
        while self._events and self._events[0][0] <= self._end:
            self._now, _, act, arguments = heappop(self._events)
            self._course.advance(self._now)
            act(*arguments)
            if self._ready:
                self._deliver()
            events += 1
            if events % _PROGRESS_EVENTS == 0:
                progress(self._finished)
                await asyncio.sleep(0)  # Ctrl-C cancels here
        progress(self._finished)
        for worker in self._workers:
            for queue in worker.queued.values():
                for _, entering, _ in queue:
                    entering.close()
        seconds = self._end if self._events else self._now
        counted = [source.counted[0] for source in self._sources]
        return Result(seconds, [*counted, *self._total], self._course)

    def _at(self, time: float, act: Callable[..., None], *arguments: Any) -> None:
        heappush(self._events, (time, next(self._numbers), act, arguments))

    def _arrive(self, source: Source, number: int) -> None:
        """Create a callback, and plan the next one."""
        if number + 1 < source.callbacks:
            self._at((number + 1) / source.rate, self._arrive, source, number + 1)
        for figures in source.counted:
            figures.callbacks += 1
        self._dispatch(new_callback(source, number, self._now))

    # The broker

    def _publish(self, callback: Callback) -> None:
        """Store a message in the work queue."""
        self._count_message(callback)
        self._ready.append(callback)

    def _deliver(self) -> None:
        """Deliver messages, in turn to the workers whose prefetch window has room."""
        while self._ready and (worker := self._next_worker()) is not None:
            worker.held += 1
            self._receive(worker, self._ready.popleft())
        self._course.depth(CALLBACKS, len(self._ready))

    def _next_worker(self) -> _Worker | None:
        for _ in self._workers:
            self._turn = (self._turn + 1) % len(self._workers)
            if self._workers[self._turn].held < self._prefetch:
                return self._workers[self._turn]
        return None

    def _wait(self, callback: Callback, tier: Tier) -> None:
        """Store a copy in a tier."""
        self._count_message(callback)
        due = self._now + tier.seconds
        queue = self._waiting[tier.name]
        queue.append((due, callback))
        if len(queue) == 1:
            self._at(due, self._return, tier)
        for figures in callback.source.counted:
            figures.enter(tier.name)
        self._course.depth(tier.name, len(queue))

    def _return(self, tier: Tier) -> None:
        """Return the first message of a tier to the work queue."""
        queue = self._waiting[tier.name]
        _, callback = queue.popleft()
        if queue:
            self._at(queue[0][0], self._return, tier)
        for figures in callback.source.counted:
            figures.waiting[tier.name] -= 1
        self._course.depth(tier.name, len(queue))
        self._publish(callback)

    def _count_message(self, callback: Callback) -> None:
        for figures in callback.source.counted:
            figures.messages.add(self._now)
        self._course.count(MESSAGES)

    # The callback service, as its consumer and its handler work

    def _receive(self, worker: _Worker, callback: Callback) -> None:
        remaining = callback.not_before - self._now
        if remaining > 0:
            tier = next_hop(remaining, self._random.random(), self._tiers)
            if tier is not None:
                worker.held -= 1
                self._wait(callback, tier)
                return
        callback.first_at = min(callback.first_at, self._now)
        if self._expired(callback):
            worker.held -= 1
            self._give_up(callback, attempted=False)
            return
        lane = worker.lanes.lane(callback.host)
        self._enter(worker, lane, callback, worker.lanes.enter(lane, callback.deferrals))

    def _expired(self, callback: Callback) -> bool:
        expires_at = callback.policy.expires_at
        return expires_at is not None and self._now >= expires_at

    def _enter(self, worker: _Worker, lane: Lane, callback: Callback, entering: Entering) -> None:
        """Continue to enter a lane until there is a place, or none will be free soon."""
        try:
            place = entering.send(None)
        except StopIteration as entered:
            self._send(worker, lane, callback, probe=entered.value)
        except DeferredError as error:
            worker.held -= 1
            self._defer(callback, error)
        else:
            worker.queued.setdefault(lane, deque()).append((place, entering, callback))
            if not self._ticking:
                self._ticking = True
                self._at(self._now + STALL_TIMEOUT / 2, self._tick)

    def _resume(self, worker: _Worker, lane: Lane) -> None:
        """Continue with the callbacks of a lane's queue that got a place, or were deferred."""
        queue = worker.queued.get(lane)
        while queue and queue[0][0].done():
            _, entering, callback = queue.popleft()
            self._enter(worker, lane, callback, entering)
        if queue is not None and not queue:
            del worker.queued[lane]

    def _tick(self) -> None:
        """Defer stalled queues, as `Lanes.run` does."""
        self._ticking = False
        for worker in self._workers:
            worker.lanes.defer_stalled()
            for lane in list(worker.queued):
                self._resume(worker, lane)
        if any(worker.queued for worker in self._workers):
            self._ticking = True
            self._at(self._now + STALL_TIMEOUT / 2, self._tick)

    def _send(self, worker: _Worker, lane: Lane, callback: Callback, *, probe: bool) -> None:
        if self._expired(callback):
            worker.lanes.leave(lane, probe=probe)
            worker.held -= 1
            self._give_up(callback, attempted=False)
            return
        for figures in callback.source.counted:
            figures.attempts += 1
        self._course.count(ATTEMPTS)
        reply = callback.source.receiver.reply(self._now, callback.lasting)
        attempt = _Attempt(worker, lane, callback, probe, reply)
        self._at(self._now + reply.duration, self._end_attempt, attempt)

    def _end_attempt(self, attempt: _Attempt) -> None:
        worker, lane, reply = attempt.worker, attempt.lane, attempt.reply
        alive, pause = False, 0.0
        if reply.status is not None:
            pause = domain.requested_pause(reply.status, reply.retry_after, now=self._now)
            alive = domain.shows_alive(reply.status, pause)
        worker.lanes.leave(
            lane, probe=attempt.probe, alive=alive, duration=reply.duration, pause=pause
        )
        worker.held -= 1
        try:
            attempt.check(self._now)
        except TransientError as error:
            self._retry(attempt.callback, error)
        except PermanentError:
            self._give_up(attempt.callback, final=True)
        else:
            self._deliver_once(attempt.callback)
        self._resume(worker, lane)

    def _retry(self, callback: Callback, error: TransientError) -> None:
        decision = decide(
            callback.policy,
            self._tiers,
            attempt=callback.attempt,
            first_at=callback.first_at,
            now=self._now,
            error=error,
            chance=self._random.random(),
        )
        if isinstance(decision, GiveUp):
            self._give_up(callback, retry_after=error.retry_after)
            return
        callback.attempt += 1
        callback.not_before = decision.not_before
        callback.deferrals = 0
        self._wait(callback, decision.tier)

    def _defer(self, callback: Callback, error: DeferredError) -> None:
        for figures in callback.source.counted:
            figures.deferrals += 1
        decision = defer(
            callback.policy, self._tiers, first_at=callback.first_at, now=self._now, error=error
        )
        if isinstance(decision, GiveUp):
            self._give_up(callback, attempted=False)
            return
        callback.deferrals += 1
        self._wait(callback, decision)

    # The end of a callback, or of a dispatch of the scheduler

    def _deliver_once(self, callback: Callback) -> None:
        for figures in callback.source.counted:
            figures.delays.append(self._now - callback.created)
            figures.last_delivery = self._now
        self._course.count(DELIVERED)
        self._finished += 1

    def _give_up(
        self,
        callback: Callback,
        *,
        final: bool = False,
        retry_after: float = 0.0,
        attempted: bool = True,
    ) -> None:
        """Plan the main retry of a scheduled callback, or dead-letter any other."""
        retry_at = end_dispatch(
            callback, self._now, final=final, retry_after=retry_after, attempted=attempted
        )
        if retry_at is not None:
            self._main_retries += 1
            self._course.depth(MAIN_RETRIES, self._main_retries)
            self._at(retry_at, self._retry_dispatch, callback)
            return
        if callback.scheduled is None:
            self._count_message(callback)
        self._die(callback)

    def _retry_dispatch(self, callback: Callback) -> None:
        self._main_retries -= 1
        self._course.depth(MAIN_RETRIES, self._main_retries)
        self._dispatch(callback)

    def _dispatch(self, callback: Callback) -> None:
        if begin_dispatch(callback, self._now):
            self._publish(callback)
        else:
            self._die(callback)

    def _die(self, callback: Callback) -> None:
        for figures in callback.source.counted:
            figures.dead += 1
        self._course.count(DEAD)
        self._finished += 1
