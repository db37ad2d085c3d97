"""Lanes: a bulkhead and circuit breaker per target, so that a slow one does not affect the others.

A lane is for the requests of one client to one target. Many customers share a host such as a chat
service, and one customer's failing hook must not affect the others. A lane limits the requests in
flight, has a short queue for the next ones, and opens its breaker after consecutive failures. A
message without a place is deferred, so that it holds no prefetch slot of the worker. No IO: futures
only order the queue.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shared.errors import DeferredError, InfrastructureError

# Requests in flight to a target without a response so far; each response adds one. So a hundred
# dead targets hold 400 slots until their breakers open, not ten thousand.
INITIAL_LIMIT: Final = 4
# Seconds that a message may be expected to wait in the queue: half of the shortest tier, which is
# the alternative.
MAX_QUEUE_TIME: Final = 0.5
# Seconds without progress after which a queue is deferred: as long as the shortest tier takes.
STALL_TIMEOUT: Final = 1.0
# Minimum seconds of deferral for a stalled target. Shorter deferrals would only repeat more often.
STALL_DELAY: Final = 5.0
# Seconds that a breaker stays open at first. Each failed probe doubles them.
INITIAL_OPEN_TIME: Final = 2.0
MAX_OPEN_TIME: Final = 60.0
# Maximum seconds of deferral, doubling from one. Messages for a target that is down for a day must
# not circulate all the time, nor wait long once it is up.
MAX_DEFERRAL: Final = 300.0
# Seconds after which a failure no longer counts as consecutive.
FAILURE_LIFETIME: Final = 60.0
# The weight of a new duration in the moving average.
SMOOTHING: Final = 0.1
# Seconds for which a target can pause a lane (429 with Retry-After). The message that got this
# response waits for as long as the target requests.
MAX_PAUSE: Final = 60.0
# Lanes in memory. Beyond it the least recently used idle one is removed. Lanes with failures have
# their own limit: healthy ones must not remove them before their breakers open.
MAX_LANES: Final = 10_000
MAX_FAILING_LANES: Final = 50_000
# Seconds since its last failure after which an idle failing lane is removed. Longer than a message
# waits in the longest tier. Otherwise the breaker of a target that is down would close between two
# attempts, and the alert about it would never fire.
ABANDONED_TIMEOUT: Final = 7200.0

# Seconds between two reports that a lane is full. They bound the facts: a full lane can defer
# thousands of messages per second.
REPORT_INTERVAL: Final = 30.0

# The target and the client.
Key = tuple[str, str | None]


def deferral_delay(deferrals: int) -> float:
    """Return the seconds of the next deferral of a message, after this number of deferrals."""
    return min(2.0 ** min(deferrals, 10), MAX_DEFERRAL)  # 10, as any sender can set the number


class Breaker(StrEnum):
    """The state of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"


@dataclass(slots=True, eq=False)
class Lane:
    """The state of one target for one client. Times are those of `Lanes`' clock."""

    target: str
    client: str | None = None
    limit: int = INITIAL_LIMIT
    in_flight: int = 0
    queue: deque[asyncio.Future[None]] = field(default_factory=deque)
    last_progress: float = 0.0  # when the queue started, or its first message got a place
    stalled: bool = False  # its queue was deferred; no new one starts until it responds
    proven: bool = False  # has responded, and not failed since
    mean_duration: float | None = None  # seconds of a response
    failures: int = 0  # consecutive ones
    last_failure: float = 0.0
    open_time: float = 0.0  # seconds for which the breaker was last opened, 0 while it is closed
    open_until: float = 0.0
    probing: bool = False
    paused_until: float = 0.0
    next_report: float = 0.0  # when it may be reported as full again

    @property
    def key(self) -> Key:
        """Return the target and the client."""
        return self.target, self.client

    @property
    def idle(self) -> bool:
        """Whether no message has a place or waits for one."""
        return not (self.in_flight or self.queue)


class Lanes:
    """All lanes of one worker.

    max_in_flight: requests in flight from one client to one target.
    prefetch: the slots of the worker. Unproven targets (without a response so far, or since a
        failure) hold at most half of them, so that they do not displace the others. For the first
        request to a target the limit is three quarters, so that a new target can prove itself.
    max_failures: consecutive failures that open a breaker.
    observe: called with the lane, state and open time of a breaker that has changed.
    report_full: called with a lane that defers messages although its breaker is closed, and the
        reason, at most once in REPORT_INTERVAL seconds.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes each by name
        self,
        *,
        max_in_flight: int,
        prefetch: int,
        max_failures: int,
        clock: Callable[[], float],
        observe: Callable[[Lane, Breaker, float], None],
        report_full: Callable[[Lane, str], None],
    ) -> None:
        self._max_in_flight = max_in_flight
        self._max_unproven = max(prefetch // 2, 1)
        self._max_unproven_first = max(prefetch * 3 // 4, 1)
        self._max_failures = max_failures
        self._clock = clock
        self._observe = observe
        self._report_full = report_full
        self._lanes: OrderedDict[Key, Lane] = OrderedDict()
        self._failing: OrderedDict[Key, Lane] = OrderedDict()  # failed since their last response
        self._unproven = 0
        self._draining = False

    def lane(self, target: str, client: str | None = None) -> Lane:
        """Return the lane of a client to a target."""
        key = target, client
        lane = self._lanes.get(key)
        if lane is not None:
            self._lanes.move_to_end(key)
            return lane
        lane = self._failing.get(key)
        if lane is not None:
            self._failing.move_to_end(key)
            return lane
        lane = Lane(target, client, limit=min(INITIAL_LIMIT, self._max_in_flight))
        self._keep(lane, self._lanes, MAX_LANES)
        return lane

    async def enter(self, lane: Lane, deferrals: int = 0) -> bool:
        """Get a place in flight, and return whether it is for the probe of an open breaker.

        `leave` releases the place.

        Raises:
            DeferredError: no place soon. The delay grows with `deferrals`, so that a backlog does
                not circulate through the shortest tier.
            InfrastructureError: the worker drains.
        """
        if self._draining:
            raise InfrastructureError("stopping")
        deferral = deferral_delay(deferrals)
        if lane.paused_until and (remaining := lane.paused_until - self._clock()) > 0:
            raise self._full(lane, "paused by the target", max(remaining, deferral))
        if lane.open_time:
            remaining = lane.open_until - self._clock()
            if remaining > 0 or lane.probing:
                raise DeferredError("breaker open", delay=max(remaining, deferral))
            lane.probing = True
            self._count_in(lane)
            return True
        if lane.in_flight >= lane.limit or lane.queue:
            if lane.stalled:
                raise self._full(lane, "lane stalled", max(deferral, STALL_DELAY))
            if not self._queue_is_short(lane):
                raise self._full(lane, "lane full", deferral)
            await self._wait(lane)
            return False
        limit = self._max_unproven if lane.in_flight else self._max_unproven_first
        if not lane.proven and self._unproven >= limit:
            # Other targets are the cause, so the delay does not grow.
            delay = min(deferral, STALL_DELAY)
            raise DeferredError("too many unproven targets", delay=delay)
        self._count_in(lane)
        return False

    def leave(
        self,
        lane: Lane,
        *,
        probe: bool = False,
        alive: bool | None = None,
        duration: float = 0.0,
        pause: float = 0.0,
    ) -> None:
        """Release the place.

        probe: the result of `enter`.
        alive: whether the target responded. None: no request was sent.
        duration: seconds until the response.
        pause: seconds for which the target requests a pause, 0 for none.
        """
        if probe:
            lane.probing = False
        lane.in_flight -= 1
        if not lane.proven:
            self._unproven -= 1
        if alive:
            self._succeeded(lane, duration)
        elif alive is False:
            self._failed(lane, probe=probe)
        if pause:
            self._pause(lane, min(pause, MAX_PAUSE))
        while lane.queue and lane.in_flight < lane.limit and not lane.open_time:
            waiting = self._pop_next(lane)
            if not waiting.done():
                self._count_in(lane)
                lane.last_progress = self._clock()
                waiting.set_result(None)

    async def run(self) -> None:
        """Defer stalled queues and remove abandoned lanes, until cancelled."""
        while True:
            await asyncio.sleep(STALL_TIMEOUT / 2)
            self.defer_stalled()
            self.remove_abandoned()

    def defer_stalled(self) -> None:
        """Defer all messages in queues without progress.

        A queue holds prefetch slots because a response is expected soon. A target that hangs must
        not hold them until its requests time out.
        """
        now = self._clock()
        for lane in (*self._lanes.values(), *self._failing.values()):
            if lane.queue and now - lane.last_progress > STALL_TIMEOUT:
                lane.stalled = True
                self._reject_queue(lane, DeferredError("lane stalled", delay=STALL_DELAY))

    def remove_abandoned(self) -> None:
        """Remove failing lanes that nobody has used for a long time, and report them as closed.

        Without requests, nothing else would ever close their breakers.
        """
        now = self._clock()
        while lane := next(iter(self._failing.values()), None):  # the least recently used one
            if not lane.idle or now - lane.last_failure <= ABANDONED_TIMEOUT:
                return
            self._remove(lane, self._failing)

    def drain(self) -> None:
        """Reject all queued messages, and all that enter later."""
        self._draining = True
        for lane in (*self._lanes.values(), *self._failing.values()):
            self._reject_queue(lane, InfrastructureError("stopping"))

    def _full(self, lane: Lane, reason: str, delay: float) -> DeferredError:
        """Return the error for a deferred message, and report the lane."""
        now = self._clock()
        if now >= lane.next_report:
            lane.next_report = now + REPORT_INTERVAL
            self._report_full(lane, reason)
        return DeferredError(reason, delay=delay)

    def _count_in(self, lane: Lane) -> None:
        lane.in_flight += 1
        if not lane.proven:
            self._unproven += 1

    def _pop_next(self, lane: Lane) -> asyncio.Future[None]:
        if not lane.proven:
            self._unproven -= 1
        return lane.queue.popleft()

    def _queue_is_short(self, lane: Lane) -> bool:
        ahead = len(lane.queue) + 1
        if lane.proven and lane.mean_duration is not None:
            return ahead * lane.mean_duration / lane.limit <= MAX_QUEUE_TIME
        # Half of the rest, so that a burst to one new target leaves slots for the next.
        left = self._max_unproven - self._unproven
        return ahead <= (left if not lane.failures else min(left, lane.limit))

    async def _wait(self, lane: Lane) -> None:
        waiting = asyncio.get_running_loop().create_future()
        if not lane.queue:
            lane.last_progress = self._clock()
        lane.queue.append(waiting)
        if not lane.proven:
            self._unproven += 1
        try:
            await waiting
        except asyncio.CancelledError:
            got_place = waiting.done() and not waiting.cancelled() and waiting.exception() is None
            if got_place:
                self.leave(lane)
            raise

    def _pause(self, lane: Lane, seconds: float) -> None:
        lane.paused_until = self._clock() + seconds
        self._narrow(lane)
        self._reject_queue(lane, DeferredError("paused by the target", delay=seconds))

    def _narrow(self, lane: Lane) -> None:
        lane.limit = max(lane.limit // 2, min(INITIAL_LIMIT, self._max_in_flight))

    def _succeeded(self, lane: Lane, duration: float) -> None:
        if lane.failures:
            self._failing.pop(lane.key, None)
            self._keep(lane, self._lanes, MAX_LANES)
        lane.failures = 0
        lane.stalled = False
        mean = duration if lane.mean_duration is None else lane.mean_duration
        lane.mean_duration = mean + SMOOTHING * (duration - mean)
        lane.limit = min(lane.limit + 1, self._max_in_flight)
        if not lane.proven:
            lane.proven = True
            self._unproven -= lane.in_flight + len(lane.queue)
        if lane.open_time:
            lane.open_time = 0.0
            self._observe(lane, Breaker.CLOSED, 0.0)

    def _failed(self, lane: Lane, *, probe: bool) -> None:
        now = self._clock()
        lane.failures = 1 if now - lane.last_failure > FAILURE_LIFETIME else lane.failures + 1
        lane.last_failure = now
        self._lanes.pop(lane.key, None)
        self._keep(lane, self._failing, MAX_FAILING_LANES)
        self._narrow(lane)
        if lane.proven:
            lane.proven = False
            self._unproven += lane.in_flight + len(lane.queue)
        if probe or (not lane.open_time and lane.failures >= self._max_failures):
            lane.open_time = min(lane.open_time * 2 or INITIAL_OPEN_TIME, MAX_OPEN_TIME)
            lane.open_until = now + lane.open_time
            self._observe(lane, Breaker.OPEN, lane.open_time)
            self._reject_queue(lane, DeferredError("breaker open", delay=lane.open_time))

    def _reject_queue(self, lane: Lane, error: Exception) -> None:
        while lane.queue:
            waiting = self._pop_next(lane)
            if not waiting.done():
                waiting.set_exception(error)

    def _keep(self, lane: Lane, lanes: OrderedDict[Key, Lane], limit: int) -> None:
        """Add a lane. Beyond the limit, remove the least recently used idle one."""
        lanes[lane.key] = lane
        if len(lanes) > limit:
            oldest = next((each for each in lanes.values() if each.idle), None)
            if oldest is None:
                return
            self._remove(oldest, lanes)

    def _remove(self, lane: Lane, lanes: OrderedDict[Key, Lane]) -> None:
        del lanes[lane.key]
        if lane.open_time:  # nothing else will report it as closed
            lane.open_time = 0.0
            self._observe(lane, Breaker.CLOSED, 0.0)
