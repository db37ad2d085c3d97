"""From a message to its hand-over and back: says in what order things are checked, and what came.

What is the same for both ways stands here; `MessageSender` is given what differs.
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
from shared.contracts.messages import Channel, SendEmail, SendSms
from shared.errors import DeferredError, ExpiredError, PermanentError, TransientError
from shared.resilience.lanes import Lane, Lanes

logger = logging.getLogger(__name__)

M = TypeVar("M", SendEmail, SendSms)

# Ids remembered of messages that were handed over: what a crashed publisher or a lost connection
# brings again comes within as many. Some 30 MB for each way.
MOST_RECENT: Final = 100_000
# Seconds that a message waits here for a place in the lane before it goes to a tier. A way has one
# target, so nobody else wants its slot, and a backlog must not circle through the tiers; far below
# the broker's 30 minutes for a delivery.
LONGEST_WAIT: Final = 30.0
# Seconds between two looks for a place.
LOOK_EVERY: Final = 1.0
# Seconds that a second copy is put off while the first is on its way.
COPY_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sent:
    """It was taken, in `duration` seconds, by the try of that name; `again`: some time before."""

    attempt_id: str
    duration: float
    again: bool = False


SendMessage = Callable[[str, M, Callable[[], None]], Awaitable[None]]


class MessageSender(Generic[M]):
    """Hands the messages of one way over; shared by all of a worker's messages.

    hand_over: id, message, and what to call right before it goes out. target: where it goes, for
    the lane.
    """

    def __init__(
        self,
        hand_over: SendMessage[M],
        lanes: Lanes,
        target: str,
        clock: Clock,
        *,
        most_recent: int = MOST_RECENT,
    ) -> None:
        self._hand_over: SendMessage[M] = hand_over
        self._lanes = lanes
        self._target = target
        self._clock = clock
        self._most_recent = most_recent
        self._recent: OrderedDict[str, Sent] = OrderedDict()
        self._on_the_way: set[str] = set()

    async def handle(self, message: Message, order: M) -> Sent:
        """Hand it over, unless that was done before.

        Raises:
            ExpiredError: it is too late.
            PermanentError: refused for good.
            TransientError: not taken; a later try may be.
            DeferredError: no place in the lane, or a copy is on its way.
        """
        before = self._recent.get(message.id)
        if before is not None:
            return Sent(before.attempt_id, before.duration, again=True)
        if message.id in self._on_the_way:
            raise DeferredError("a copy of it is on its way", delay=COPY_PAUSE)
        self._on_the_way.add(message.id)
        try:
            lane = self._lanes.lane(self._target)
            probe = await self._place(lane, message, order)
            return await self._attempt(lane, message, order, probe=probe)
        finally:
            self._on_the_way.discard(message.id)

    async def _place(self, lane: Lane, message: Message, order: M) -> bool:
        until = self._clock.monotonic() + LONGEST_WAIT
        while True:
            domain.in_time(order, self._clock.now)
            try:
                return await self._lanes.enter(lane, message.deferrals)
            except DeferredError:
                if self._clock.monotonic() >= until:
                    raise
            await asyncio.sleep(LOOK_EVERY)

    async def _attempt(self, lane: Lane, message: Message, order: M, *, probe: bool) -> Sent:
        alive: bool | None = None
        started = self._clock.monotonic()

        def check() -> None:
            domain.in_time(order, self._clock.now)

        try:
            await self._hand_over(message.id, order, check)
            alive = True
        except ProviderError:
            alive = False
            raise
        except ExpiredError:
            raise
        except (PermanentError, TransientError):
            alive = True  # it answered
            raise
        finally:
            duration = self._clock.monotonic() - started
            self._lanes.leave(lane, probe=probe, alive=alive, duration=duration)
        sent = Sent(message.attempt_id, duration)
        self._recent[message.id] = sent
        if len(self._recent) > self._most_recent:
            self._recent.popitem(last=False)
        return sent


class Reporter:
    """Says what became of each message of one way: one log line, its counts, its fact."""

    def __init__(self, channel: Channel, clock: Clock) -> None:
        self._way = channel
        self._clock = clock
        self._sent = metrics.MESSAGES.labels(channel, "sent")
        self._attempt_failed = metrics.MESSAGES.labels(channel, "attempt_failed")
        self._failed = metrics.MESSAGES.labels(channel, "failed")
        self._expired = metrics.MESSAGES.labels(channel, "expired")
        self._repeats = metrics.REPEATS.labels(channel)
        self._duration = metrics.DURATION.labels(channel)

    def report(
        self, message: Message, order: SendEmail | SendSms | None, outcome: Outcome[Sent]
    ) -> BaseModel | None:
        """Log, count, and give the fact to publish; a postponed message has none."""
        posting_id = order.posting_id if order else None
        context: dict[str, object] = {
            "message_id": message.id,
            "posting_id": posting_id,
            "user_id": order.user_id if order else None,
            "channel": self._way,
            "attempt": message.attempt,
            "trace_id": message.trace_id,
        }
        told: dict[str, Any] = {
            "fact_id": message.attempt_id,
            "at": datetime.fromtimestamp(self._clock.now(), UTC),
            "message_id": message.id,
            "posting_id": posting_id,
            "channel": self._way,
            "attempt": message.attempt,
        }
        match outcome:
            case Done(Sent(attempt_id, duration, again)):
                if again:
                    # Told again under the same id: the first time may have got lost with the
                    # connection.
                    self._repeats.inc()
                    logger.info("message came again, was sent before", extra=context)
                    return MessageSent(**told | {"fact_id": attempt_id}, duration=duration)
                self._sent.inc()
                self._duration.observe(duration)
                context |= {"duration": round(duration, 6)}
                logger.info("message sent", extra=context)
                return MessageSent(**told, duration=duration)
            case Retried(tier, not_before, error):
                self._attempt_failed.inc()
                context |= {"error": str(error), "tier": tier.name}
                logger.warning("message attempt failed", extra=context)
                return MessageAttemptFailed(
                    **told,
                    error=str(error),
                    next_at=datetime.fromtimestamp(not_before, UTC),
                )
            case Deferred(tier, reason):
                context |= {"reason": reason, "tier": tier.name}
                logger.debug("message postponed", extra=context)
                return None
            case Dead(reason, ExpiredError()):
                self._expired.inc()
                logger.warning("message expired", extra=context | {"reason": reason})
                return MessageExpired(**told, reason=reason)
            case Dead(reason) | DispatchFailed(reason):
                self._failed.inc()
                logger.error("message failed", extra=context | {"reason": reason})
                return MessageFailed(**told, reason=reason)
