"""Admits messages to one provider: urgent ones first, within its limits, while it works.

The limits are a number of messages in flight and, optionally, a rate. All delivery processes share
both. The number in flight is divided among the live processes. The rate is a token bucket in the
database. A circuit breaker stops the attempts while the provider fails.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import Enum, auto
from typing import Final

from services.delivery.domain import Grant
from shared.errors import InfrastructureError
from shared.registry import BULK, PRIORITIES, URGENT, Priority
from shared.resilience.lanes import (
    ABANDONED_TIMEOUT,
    FAILURE_LIFETIME,
    INITIAL_LIMIT,
    INITIAL_OPEN_TIME,
    MAX_DEFERRAL,
    MAX_OPEN_TIME,
    Breaker,
)

logger = logging.getLogger(__name__)

# Seconds after which a provider that was busy gets one more message in flight. Each time, it may
# refuse one connection, and no attempt is lost.
RECOVERY_INTERVAL: Final = 60.0
# Seconds after which a provider that throttles gets more messages in flight, or half as many again.
THROTTLING_INTERVAL: Final = 1.0
# Seconds between two requests for tokens, so that the database is not asked for each message.
MIN_TOKEN_INTERVAL: Final = 0.02
# Seconds before tokens are requested again while the database is unavailable.
UNAVAILABLE_DELAY: Final = 1.0

TakeTokens = Callable[[Mapping[Priority, int]], Awaitable[Grant]]


class Result(Enum):
    """The result of an attempt, as far as it concerns the provider."""

    NOTHING = auto()  # no attempt was made
    SENT = auto()  # `recorded` follows
    WORKS = auto()  # it responded
    THROTTLES = auto()  # it responded, and wants fewer messages
    BUSY = auto()  # it refused the connection, because it has too many
    FAILS = auto()


class Provider:
    """The messages in flight to one provider, and those that wait.

    Messages in flight and sent messages that are not recorded are at most twice its places. A kill
    repeats no others.

    target: scheme, host and port, for the log and the metrics.
    concurrency: messages in flight of all processes.
    take_tokens: takes tokens of the provider's rate; None if it has no rate.
    max_failures: consecutive failures that open the circuit breaker.
    observe: called with target, state and open time of the circuit breaker when it changes.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        target: str,
        *,
        concurrency: int,
        take_tokens: TakeTokens | None,
        max_failures: int,
        clock: Callable[[], float],
        observe: Callable[[str, Breaker, float], None],
    ) -> None:
        self.target = target
        self._concurrency = concurrency
        self._take_tokens = take_tokens
        self._max_failures = max_failures
        self._clock = clock
        self._observe = observe
        self._waiting: dict[Priority, deque[asyncio.Future[bool]]] = {
            priority: deque() for priority in PRIORITIES
        }
        self._share = concurrency  # messages in flight of this process
        self._limit = min(INITIAL_LIMIT, concurrency)  # grows up to the share
        self._grow_at = 0.0
        self._grow_interval = 0.0
        self._in_flight = 0
        self._unrecorded = 0  # sent, but another process does not know it yet
        self._tokens = 0
        self._tokens_wanted = asyncio.Event()
        self._urgent_arrived = asyncio.Event()
        self._failures = 0
        self._last_failure = 0.0
        self._open_time = 0.0  # seconds for which the breaker was last opened, 0 while it is closed
        self._open_until = 0.0
        self._probing = False
        self._draining = False

    def divide(self, processes: int) -> None:
        """Use the share of one of so many processes, but at least one message in flight."""
        self._share = max(self._concurrency // max(processes, 1), 1)
        self._limit = min(self._limit, self._share)

    async def enter(self, priority: Priority) -> bool:
        """Wait for a place in flight; return whether it is for the probe of an open breaker.

        `leave` gives it back.

        Raises:
            InfrastructureError: the process stops.
        """
        if self._draining:
            raise InfrastructureError("stopping")
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[priority]
        waiting.append(place)
        if priority == URGENT:
            self._urgent_arrived.set()
        self._admit()
        try:
            return await place
        except asyncio.CancelledError:
            if not place.cancelled() and place.exception() is None:
                self.leave(Result.NOTHING, probe=place.result())
            else:
                with suppress(ValueError):
                    waiting.remove(place)
            raise

    def leave(self, result: Result, *, probe: bool) -> None:
        """Give back a place, with the result of the attempt."""
        self._in_flight -= 1
        if probe:
            self._probing = False
        match result:
            case Result.SENT:
                self._unrecorded += 1
                self._succeed()
            case Result.WORKS:
                self._succeed()
            case Result.BUSY if self._in_flight:
                # The connections that it has are the number that it takes.
                self._limit = min(self._limit, self._in_flight)
                self._grow_interval = RECOVERY_INTERVAL
                self._grow_at = self._clock() + RECOVERY_INTERVAL
            case Result.THROTTLES:
                if self._clock() >= self._grow_at:
                    self._limit = max(self._limit // 2, 1)
                    self._grow_at = self._clock() + THROTTLING_INTERVAL
                self._fail(probe=probe)
            case Result.FAILS | Result.BUSY:
                self._limit = max(self._limit // 2, min(INITIAL_LIMIT, self._share))
                self._fail(probe=probe)
        self._admit()

    def recorded(self) -> None:
        """Note that a sent message is recorded in the database."""
        self._unrecorded -= 1
        self._admit()

    def deferral(self, deferrals: int) -> float:
        """Return the seconds for which a message without a place is deferred."""
        # At most ten: any sender can set the number.
        delay = min(2.0 ** min(deferrals, 10), MAX_DEFERRAL)
        return max(self._open_until - self._clock(), delay) if self._open_time else delay

    @property
    def obstacle(self) -> str:
        """Return why messages wait."""
        return "breaker open" if self._open_time else "provider busy"

    def drain(self) -> None:
        """Reject all waiting messages, and all that enter later."""
        self._draining = True
        for waiting in self._waiting.values():
            while waiting:
                place = waiting.popleft()
                if not place.done():
                    place.set_exception(InfrastructureError("stopping"))

    async def run(self) -> None:
        """Take tokens for waiting messages, until cancelled."""
        while self._take_tokens is not None:
            await self._tokens_wanted.wait()
            try:
                grant = await self._take_tokens(self._wanted())
            except InfrastructureError as error:
                logger.warning("tokens not taken: %s", error, extra={"target_url": self.target})
                await asyncio.sleep(UNAVAILABLE_DELAY)
                continue
            self._tokens += grant.tokens
            self._tokens_wanted.clear()
            self._urgent_arrived.clear()
            self._admit()
            if self._tokens_wanted.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(grant.delay, MIN_TOKEN_INTERVAL)):
                        await self._urgent_arrived.wait()
        await asyncio.Event().wait()

    def _wanted(self) -> Mapping[Priority, int]:
        """Return the tokens to take: for waiting messages, as far as there are places."""
        places = max(self._limit - self._in_flight, 0)
        urgent = min(len(self._waiting[URGENT]), places)
        return {URGENT: urgent, BULK: min(len(self._waiting[BULK]), places - urgent)}

    def _admit(self) -> None:
        """Give places to waiting messages."""
        while waiting := self._waiting[URGENT] or self._waiting[BULK]:
            if waiting[0].done():  # cancelled
                waiting.popleft()
                continue
            is_open = self._open_time and (self._probing or self._clock() < self._open_until)
            unrecorded = self._in_flight + self._unrecorded
            if is_open or self._in_flight >= self._limit or unrecorded >= 2 * self._share:
                return
            if self._take_tokens is not None:
                if not self._tokens:
                    self._tokens_wanted.set()
                    return
                self._tokens -= 1
            self._in_flight += 1
            self._probing = bool(self._open_time)
            waiting.popleft().set_result(self._probing)
        self._tokens = 0  # a token that is kept would allow a burst later

    def _succeed(self) -> None:
        self._failures = 0
        if self._open_time:
            self._open_time = 0.0
            self._observe(self.target, Breaker.CLOSED, 0.0)
        if self._limit < self._share and self._clock() >= self._grow_at:
            self._limit += 1
            self._grow_at = self._clock() + self._grow_interval

    def _fail(self, *, probe: bool) -> None:
        now = self._clock()
        recent = now - self._last_failure <= FAILURE_LIFETIME
        self._failures = self._failures + 1 if recent else 1
        self._last_failure = now
        if probe or (not self._open_time and self._failures >= self._max_failures):
            self._open_time = min(self._open_time * 2 or INITIAL_OPEN_TIME, MAX_OPEN_TIME)
            self._open_until = now + self._open_time
            asyncio.get_running_loop().call_later(self._open_time, self._admit)
            self._observe(self.target, Breaker.OPEN, self._open_time)
        if self._open_time:  # also for attempts that fail after the one that opened it
            loop = asyncio.get_running_loop()
            loop.call_later(ABANDONED_TIMEOUT, self._close_abandoned, now)

    def _close_abandoned(self, failed_at: float) -> None:
        """Close the breaker if no message was sent since this failure: no probe would close it."""
        if self._open_time and self._last_failure == failed_at and not self._in_flight:
            self._failures = 0
            self._open_time = 0.0
            self._observe(self.target, Breaker.CLOSED, 0.0)
