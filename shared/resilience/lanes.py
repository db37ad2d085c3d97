"""One slow receiver costs the others nothing: a lane for each target, with a circuit breaker.

A lane limits the requests in flight to its target, keeps a short line of those that wait, and opens
its breaker after failures in a row. What finds no place is deferred, so that it holds none of the
worker's prefetch slots while others could use it. No IO; the futures only order the waiting.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shared.errors import DeferredError, InfrastructureError

# A lane nobody has got through starts narrow and widens by one with each answer, so that a hundred
# dead targets hold 400 slots until their breakers open, not ten thousand.
INITIAL_LIMIT: Final = 4
# Seconds that the line may take to move up: half of the shortest tier, whose trip is the other way
# to wait.
MAX_QUEUED: Final = 0.5
# Seconds after which a line that has not moved is sent away, since its target stalls: the trip
# through the shortest tier takes as long.
STALL_TIMEOUT: Final = 1.0
# Seconds that messages for a target that stalls are put off for at least: a shorter trip would only
# be made more often.
STALL_DELAY: Final = 5.0
# Seconds a breaker stays open, doubling with every probe that fails.
INITIAL_OPEN_TIME: Final = 2.0
MAX_OPEN_TIME: Final = 60.0
# Seconds that a message is put off for at most, doubling from one: what waits for a target that is
# gone for a day must not come round all the time, nor wait long when it is back.
MAX_QUEUE_TIME: Final = 300.0
# Failures further apart than this are not "in a row".
IDLE_LIFETIME: Final = 60.0
# How far the mean duration moves towards each new one.
SMOOTHING: Final = 0.1
# Lanes remembered; beyond it the longest unused idle ones are forgotten.
MAX_LANES: Final = 10_000


class Breaker(StrEnum):
    """Whether a target is called."""

    CLOSED = "closed"
    OPEN = "open"


@dataclass(slots=True, eq=False)
class Lane:
    """The state of one target. Times are the event loop's."""

    target: str
    limit: int = INITIAL_LIMIT
    in_flight: int = 0
    line: deque[asyncio.Future[None]] = field(default_factory=deque)
    moved: float = 0.0  # when the line began, or somebody in it was let in
    stalled: bool = False  # its line was sent away; nobody lines up until it answers
    proven: bool = False  # has answered, and not failed since
    mean: float | None = None  # seconds an answer takes
    failures: int = 0
    last_failure: float = 0.0
    pause: float = 0.0  # seconds the breaker was last opened for; 0 while it is closed
    open_until: float = 0.0
    probing: bool = False

    @property
    def idle(self) -> bool:
        """Whether nobody holds a place in it or waits for one."""
        return not (self.in_flight or self.line)


class Lanes:
    """All lanes of one worker.

    widest: requests in flight to one target. slots: the worker's prefetch, of which targets that
    have not answered (yet, or since a failure) may hold half, and three quarters if the rest are
    their only requests in flight: a new target always gets its chance to answer. changed: told of
    a target's breaker.
    """

    def __init__(
        self,
        *,
        widest: int,
        slots: int,
        failures: int,
        clock: Callable[[], float],
        changed: Callable[[str, Breaker, float], None],
    ) -> None:
        self._widest = widest
        self._most_unproven = max(slots // 2, 1)
        self._most_first = max(slots * 3 // 4, 1)
        self._failures = failures
        self._clock = clock
        self._changed = changed
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._unproven = 0
        self._draining = False

    def lane(self, target: str) -> Lane:
        """The lane of a target."""
        lane = self._lanes.get(target)
        if lane is None:
            lane = self._lanes[target] = Lane(target, limit=min(INITIAL_LIMIT, self._widest))
            self._forget()
        else:
            self._lanes.move_to_end(target)
        return lane

    async def enter(self, lane: Lane, deferrals: int = 0) -> bool:
        """Take a place in flight; `leave` gives it back. True: it is the probe of an open breaker.

        Raises:
            DeferredError: no place soon. The delay grows with `deferrals`, so that a backlog does
                not circle through the shortest tier.
            InfrastructureError: the worker drains.
        """
        if self._draining:
            raise InfrastructureError("stopping")
        # At most ten: anybody may have written the number.
        patience = min(2.0 ** min(deferrals, 10), MAX_QUEUE_TIME)
        if lane.pause:
            remaining = lane.open_until - self._clock()
            if remaining > 0 or lane.probing:
                raise DeferredError("breaker open", delay=max(remaining, patience))
            lane.probing = True
            self._count_in(lane)
            return True
        if lane.in_flight >= lane.limit or lane.line:
            if lane.stalled:
                raise DeferredError("lane stalls", delay=max(patience, STALL_DELAY))
            if not self._line_is_short(lane):
                raise DeferredError("lane full", delay=patience)
            await self._wait(lane)
            return False
        room = self._most_unproven if lane.in_flight else self._most_first
        if not lane.proven and self._unproven >= room:
            # The crowd's fault, not the target's: it need not wait for longer each time.
            delay = min(patience, STALL_DELAY)
            raise DeferredError("too many targets that have not answered", delay=delay)
        self._count_in(lane)
        return False

    def leave(
        self, lane: Lane, *, probe: bool = False, alive: bool | None = None, duration: float = 0.0
    ) -> None:
        """Give the place back. `probe` is what `enter` gave.

        `alive`: whether the target answered; None when it was not asked. `duration` is what the
        answer took, in seconds.
        """
        if probe:
            lane.probing = False
        lane.in_flight -= 1
        if not lane.proven:
            self._unproven -= 1
        if alive:
            self._answered(lane, duration)
        elif alive is False:
            self._failed(lane, probe=probe)
        while lane.line and lane.in_flight < lane.limit and not lane.pause:
            waiting = self._next_in_line(lane)
            if not waiting.done():
                self._count_in(lane)
                lane.moved = self._clock()
                waiting.set_result(None)

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""
        while True:
            await asyncio.sleep(STALL_TIMEOUT / 2)
            self.sweep()

    def sweep(self) -> None:
        """Send away every line that has not moved for a while.

        A line holds slots on the promise that an answer is near. A target that hangs breaks it,
        and must not keep the slots until its requests have timed out.
        """
        now = self._clock()
        for lane in self._lanes.values():
            if lane.line and now - lane.moved > STALL_TIMEOUT:
                lane.stalled = True
                self._dissolve(lane, DeferredError("lane stalls", delay=STALL_DELAY))

    def drain(self) -> None:
        """Send all who wait back, and let nobody in."""
        self._draining = True
        for lane in self._lanes.values():
            self._dissolve(lane, InfrastructureError("stopping"))

    def _count_in(self, lane: Lane) -> None:
        lane.in_flight += 1
        if not lane.proven:
            self._unproven += 1

    def _next_in_line(self, lane: Lane) -> asyncio.Future[None]:
        if not lane.proven:
            self._unproven -= 1
        return lane.line.popleft()

    def _line_is_short(self, lane: Lane) -> bool:
        ahead = len(lane.line) + 1
        if lane.proven and lane.mean is not None:
            return ahead * lane.mean / lane.limit <= MAX_QUEUED
        # Half of what is left, so that a burst to one new target leaves room for the next.
        left = self._most_unproven - self._unproven
        return ahead <= (left if not lane.failures else min(left, lane.limit))

    async def _wait(self, lane: Lane) -> None:
        waiting = asyncio.get_running_loop().create_future()
        if not lane.line:
            lane.moved = self._clock()
        lane.line.append(waiting)
        if not lane.proven:
            self._unproven += 1
        try:
            await waiting
        except asyncio.CancelledError:
            handed_over = waiting.done() and not waiting.cancelled() and waiting.exception() is None
            if handed_over:
                self.leave(lane)
            raise

    def _answered(self, lane: Lane, duration: float) -> None:
        lane.failures = 0
        lane.stalled = False
        lane.mean = (
            duration if lane.mean is None else lane.mean + SMOOTHING * (duration - lane.mean)
        )
        lane.limit = min(lane.limit + 1, self._widest)
        if not lane.proven:
            lane.proven = True
            self._unproven -= lane.in_flight + len(lane.line)
        if lane.pause:
            lane.pause = 0.0
            self._changed(lane.target, Breaker.CLOSED, 0.0)

    def _failed(self, lane: Lane, *, probe: bool) -> None:
        now = self._clock()
        lane.failures = 1 if now - lane.last_failure > IDLE_LIFETIME else lane.failures + 1
        lane.last_failure = now
        lane.limit = max(lane.limit // 2, min(INITIAL_LIMIT, self._widest))
        if lane.proven:
            lane.proven = False
            self._unproven += lane.in_flight + len(lane.line)
        if probe or (not lane.pause and lane.failures >= self._failures):
            lane.pause = min(lane.pause * 2 or INITIAL_OPEN_TIME, MAX_OPEN_TIME)
            lane.open_until = now + lane.pause
            self._changed(lane.target, Breaker.OPEN, lane.pause)
            self._dissolve(lane, DeferredError("breaker open", delay=lane.pause))

    def _dissolve(self, lane: Lane, error: Exception) -> None:
        while lane.line:
            waiting = self._next_in_line(lane)
            if not waiting.done():
                waiting.set_exception(error)

    def _forget(self) -> None:
        if len(self._lanes) > MAX_LANES:
            oldest = next(lane for lane in self._lanes.values() if lane.idle)
            del self._lanes[oldest.target]
            if oldest.pause:  # nobody will close its breaker
                self._changed(oldest.target, Breaker.CLOSED, 0.0)
