"""Sends a message through its channel and reports the outcome.

All channels share this code. A `ChannelSender` holds the differences.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel

from services.delivery import domain, metrics
from services.delivery.domain import ProviderError
from shared.amqp.message import Dead, Deferred, DispatchFailed, Done, Message, Outcome, Retried
from shared.clock import Clock
from shared.contracts.message_facts import (
    MessageAttemptFailed,
    MessageExpired,
    MessageFailed,
    MessageSent,
)
from shared.contracts.messages import RenderedMessage
from shared.errors import DeferredError, ExpiredError, PermanentError, TransientError
from shared.resilience.lanes import Lane, Lanes

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=RenderedMessage)

# Ids of sent messages that are remembered. Repeats after a crash of the publisher or a lost
# connection are within this number. The ids take about 30 MB for each channel.
MAX_REMEMBERED: Final = 100_000
# Seconds that a message waits here for a place in the lane before it goes to a tier. The messages
# of a channel have one target, so they block no other target, and a backlog must not circle through
# the tiers. The limit is far below the broker's acknowledgement timeout of 30 minutes.
LANE_TIMEOUT: Final = 30.0
# Seconds between two attempts to enter the lane.
LANE_INTERVAL: Final = 1.0
# Seconds that a duplicate is deferred while the first copy is in flight.
DUPLICATE_DELAY: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider accepted the message after `duration` seconds, in attempt `attempt_id`.

    repeated: an earlier delivery of the same message was sent, this one was not.
    """

    attempt_id: str
    duration: float
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class ChannelSender(Generic[M]):
    """How the messages of one channel are sent.

    target: the provider's origin; it names the lane and the circuit breaker.
    concurrency: the largest number of attempts in flight.
    send: sends one message, given its id. It must call `check` right before the content goes out;
        `check` raises ExpiredError.
    """

    target: str
    concurrency: int
    send: Callable[[str, M, Callable[[], None]], Awaitable[None]]


class MessageSender(Generic[M]):
    """Handles the messages of one channel; each worker has one."""

    def __init__(
        self,
        sender: ChannelSender[M],
        lanes: Lanes,
        clock: Clock,
        *,
        max_remembered: int = MAX_REMEMBERED,
    ) -> None:
        self._sender = sender
        self._lanes = lanes
        self._clock = clock
        self._max_remembered = max_remembered
        self._sent: OrderedDict[str, Sent] = OrderedDict()
        self._in_flight: set[str] = set()

    async def handle(self, message: Message, command: M) -> Sent:
        """Send the message, unless it was sent before.

        Raises:
            ExpiredError: `expires_at` has passed.
            PermanentError: the provider refused the message for good.
            TransientError: the attempt failed; a later one may succeed.
            DeferredError: the lane is full, or a copy of the message is in flight.
        """
        before = self._sent.get(message.id)
        if before is not None:
            return Sent(before.attempt_id, before.duration, repeated=True)
        if message.id in self._in_flight:
            raise DeferredError("a copy of the message is in flight", delay=DUPLICATE_DELAY)
        self._in_flight.add(message.id)
        try:
            lane = self._lanes.lane(self._sender.target)
            probe = await self._enter(lane, message, command)
            return await self._attempt(lane, message, command, probe=probe)
        finally:
            self._in_flight.discard(message.id)

    async def _enter(self, lane: Lane, message: Message, command: M) -> bool:
        deadline = self._clock.monotonic() + LANE_TIMEOUT
        while True:
            domain.check_expiry(command, self._clock.now)
            try:
                return await self._lanes.enter(lane, message.deferrals)
            except DeferredError:
                if self._clock.monotonic() >= deadline:
                    raise
            await asyncio.sleep(LANE_INTERVAL)

    async def _attempt(self, lane: Lane, message: Message, command: M, *, probe: bool) -> Sent:
        alive: bool | None = None
        started = self._clock.monotonic()

        def check() -> None:
            domain.check_expiry(command, self._clock.now)

        try:
            await self._sender.send(message.id, command, check)
            alive = True
        except ProviderError:
            alive = False
            raise
        except ExpiredError:
            raise
        except (PermanentError, TransientError):
            alive = True  # the provider responded
            raise
        finally:
            duration = self._clock.monotonic() - started
            self._lanes.leave(lane, probe=probe, alive=alive, duration=duration)
        sent = Sent(message.attempt_id, duration)
        self._sent[message.id] = sent
        if len(self._sent) > self._max_remembered:
            self._sent.popitem(last=False)
        return sent


class Reporter:
    """Reports the outcome of each message of one channel: a log line, metrics and a fact."""

    def __init__(self, channel: str, clock: Clock) -> None:
        self._channel = channel
        self._clock = clock
        self._sent = metrics.MESSAGES.labels(channel, "sent")
        self._attempt_failed = metrics.MESSAGES.labels(channel, "attempt_failed")
        self._failed = metrics.MESSAGES.labels(channel, "failed")
        self._expired = metrics.MESSAGES.labels(channel, "expired")
        self._repeats = metrics.REPEATS.labels(channel)
        self._duration = metrics.DURATION.labels(channel)

    def report(
        self, message: Message, command: RenderedMessage | None, outcome: Outcome[Sent]
    ) -> BaseModel | None:
        """Log and count the outcome, and return the fact to publish; None if it was deferred."""
        posting_id = command.posting_id if command else None
        context: dict[str, object] = {
            "message_id": message.id,
            "posting_id": posting_id,
            "user_id": command.user_id if command else None,
            "channel": self._channel,
            "attempt": message.attempt,
            "trace_id": message.trace_id,
        }
        fact: dict[str, Any] = {
            "fact_id": message.attempt_id,
            "at": datetime.fromtimestamp(self._clock.now(), UTC),
            "message_id": message.id,
            "posting_id": posting_id,
            "channel": self._channel,
            "attempt": message.attempt,
        }
        match outcome:
            case Done(Sent(attempt_id, duration, repeated)):
                if repeated:
                    # The fact is published again under the same id: the first one may have been
                    # lost with the connection.
                    self._repeats.inc()
                    logger.info("message repeated, already sent", extra=context)
                    return MessageSent(**fact | {"fact_id": attempt_id}, duration=duration)
                self._sent.inc()
                self._duration.observe(duration)
                context |= {"duration": round(duration, 6)}
                logger.info("message sent", extra=context)
                return MessageSent(**fact, duration=duration)
            case Retried(tier, not_before, error):
                self._attempt_failed.inc()
                context |= {"error": str(error), "tier": tier.name}
                logger.warning("message attempt failed", extra=context)
                return MessageAttemptFailed(
                    **fact,
                    error=str(error),
                    next_at=datetime.fromtimestamp(not_before, UTC),
                )
            case Deferred(tier, reason):
                context |= {"reason": reason, "tier": tier.name}
                logger.debug("message deferred", extra=context)
                return None
            case Dead(reason, ExpiredError()):
                self._expired.inc()
                logger.warning("message expired", extra=context | {"reason": reason})
                return MessageExpired(**fact, reason=reason)
            case Dead(reason) | DispatchFailed(reason):
                self._failed.inc()
                logger.error("message failed", extra=context | {"reason": reason})
                return MessageFailed(**fact, reason=reason)
