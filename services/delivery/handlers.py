"""Sends a message through its channel and reports the outcome.

All channels share this code. A `ChannelSender` holds the differences.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel

from services.delivery import domain, metrics, spans
from services.delivery.claims import COPY_DELAY, Claim, Claims, claim_id
from services.delivery.domain import (
    BusyError,
    Limits,
    ProviderError,
    ThrottledError,
    WithheldError,
)
from services.delivery.provider import Provider, Result
from services.delivery.stops import Stops
from shared.amqp.message import Dead, Deferred, DispatchFailed, Done, Message, Outcome, Retried
from shared.clock import Clock
from shared.contracts.message_facts import (
    MessageAttemptFailed,
    MessageExpired,
    MessageFailed,
    MessageReturned,
    MessageSent,
    ReturnCode,
)
from shared.contracts.messages import RenderedMessage
from shared.errors import DeferredError, ExpiredError, PermanentError, TransientError
from shared.registry import Priority

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=RenderedMessage)
Check = Callable[[], Awaitable[None]]

# Seconds that a message waits here for a place before it goes to a tier. The messages of a channel
# have one target, so they block no other target, and a backlog must not circle through the tiers.
# The limit is far below the broker's acknowledgement timeout of 30 minutes.
WAIT_TIMEOUT: Final = 30.0


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider accepted the message after `duration` seconds.

    status: of its response; None if an earlier delivery of the same message was
        sent, and this one was not.
    """

    duration: float
    status: int | None


@dataclass(frozen=True, slots=True)
class Returned:
    """The message may not be sent now. Its mailing decides what becomes of it."""

    code: ReturnCode


@dataclass(frozen=True, slots=True)
class Expired:
    """The message of a mailing has expired, and its mailing settles it."""

    reason: str


Handled = Sent | Returned | Expired


@dataclass(frozen=True, slots=True)
class ChannelSender(Generic[M]):
    """How the messages of one channel are sent.

    target: the provider's origin; it names the provider and its circuit breaker.
    limits: the limits of the provider, for all delivery processes together.
    send: sends one message, given its id, and returns the status of the provider's response. It
        must await `check` right before the content goes out. `check` raises an error if the message
        must not be sent.
    """

    target: str
    limits: Limits
    send: Callable[[str, M, Check], Awaitable[int]]


class MessageSender(Generic[M]):
    """Handles the messages of one channel."""

    def __init__(  # noqa: PLR0913, PLR0917 - the composition root passes each collaborator
        self,
        channel: str,
        sender: ChannelSender[M],
        provider: Provider,
        claims: Claims,
        stops: Stops,
        clock: Clock,
    ) -> None:
        self._channel = channel
        self._sender = sender
        self._provider = provider
        self._claims = claims
        self._stops = stops
        self._clock = clock
        self._in_flight: set[str] = set()

    async def handle(self, priority: Priority, message: Message, command: M) -> Handled:
        """Send the message, unless it was sent before, or may not be sent now.

        Raises:
            ExpiredError: `expires_at` has passed, and the message is not of a mailing.
            PermanentError: the provider refused the message for good.
            TransientError: the attempt failed; a later one may succeed.
            DeferredError: the provider is busy, or a copy of the message is in flight.
            InfrastructureError: the database is unavailable, or the process stops.
        """
        if message.id in self._in_flight:
            raise DeferredError("a copy of the message is in flight", delay=COPY_DELAY)
        self._in_flight.add(message.id)
        try:
            claim = await self._claims.claim(claim_id(self._channel, message.id))
            if claim.sent is not None:
                return Sent(claim.sent, None)
            sent = None
            try:
                sent = await self._send(priority, message, command, claim)
            except WithheldError as error:
                return Returned(error.code)
            except ExpiredError as error:
                if command.mailing_id is None:
                    raise
                return Expired(str(error))
            finally:
                if sent is None:
                    self._claims.release(claim)
            return sent
        finally:
            self._in_flight.discard(message.id)

    async def _send(self, priority: Priority, message: Message, command: M, claim: Claim) -> Sent:
        deadline = self._clock.monotonic() + WAIT_TIMEOUT
        if command.mailing_id is not None:
            await self._stops.check(command.mailing_id)
        while True:
            probe = await self._enter(priority, message, command, deadline)
            try:
                return await self._attempt(message, command, claim, probe=probe)
            except BusyError as error:  # the message waits for another place
                context = message_context(self._channel, message, command)
                logger.info(
                    "message refused by a busy provider", extra=context | {"error": str(error)}
                )

    async def _enter(
        self, priority: Priority, message: Message, command: M, deadline: float
    ) -> bool:
        """Wait for a place, until the message may not be sent any more or is deferred."""
        domain.check_time(command, self._clock.now)
        timeout = deadline - self._clock.monotonic()
        timeout = min(timeout, domain.time_limit(command) - self._clock.now())
        try:
            async with asyncio.timeout(timeout):
                return await self._provider.enter(priority)
        except TimeoutError:
            domain.check_time(command, self._clock.now)
            delay = self._provider.deferral(message.deferrals)
            raise DeferredError(self._provider.obstacle, delay=delay) from None

    async def _attempt(self, message: Message, command: M, claim: Claim, *, probe: bool) -> Sent:
        result = Result.NOTHING
        started = self._clock.monotonic()

        async def check() -> None:
            if command.mailing_id is not None:
                await self._stops.check(command.mailing_id)
            # Nothing waits from here on: the process may have been suspended while it did.
            domain.check_time(command, self._clock.now)
            self._claims.check(claim)

        try:
            sending = self._sender.send(message.id, command, check)
            if message.span is not None:
                sending = spans.observed(message, self._channel, self._sender.target, sending)
            status = await sending
            result = Result.SENT
            duration = self._clock.monotonic() - started
        except BusyError:
            result = Result.BUSY
            raise
        except ProviderError:
            result = Result.FAILS
            raise
        except ThrottledError:
            result = Result.THROTTLES
            raise
        except (ExpiredError, WithheldError):
            raise
        except (PermanentError, TransientError):
            result = Result.WORKS  # the provider responded
            raise
        finally:
            self._provider.leave(result, probe=probe)
        await self._claims.record(claim, duration, self._provider.recorded)
        return Sent(duration, status)


def message_context(
    channel: str, message: Message, command: RenderedMessage | None
) -> dict[str, object]:
    """Return the fields of each log line about a message."""
    return {
        "message_id": message.id,
        "posting_id": command.posting_id if command else None,
        "user_id": command.user_id if command else None,
        "mailing_id": command.mailing_id if command else None,
        "recipient_id": command.recipient_id if command else None,
        "channel": channel,
        "attempt": message.attempt,
        "trace_id": message.trace_id,
    }


class Reporter:
    """Reports the outcome of each message of one channel: a log line, metrics and a fact."""

    def __init__(self, channel: str, clock: Clock) -> None:
        self._channel = channel
        self._clock = clock
        self._sent = metrics.MESSAGES.labels(channel, "sent")
        self._attempt_failed = metrics.MESSAGES.labels(channel, "attempt_failed")
        self._failed = metrics.MESSAGES.labels(channel, "failed")
        self._expired = metrics.MESSAGES.labels(channel, "expired")
        self._returned = metrics.MESSAGES.labels(channel, "returned")
        self._repeats = metrics.REPEATS.labels(channel)
        self._duration = metrics.DURATION.labels(channel)

    def report(
        self, message: Message, command: RenderedMessage | None, outcome: Outcome[Handled]
    ) -> BaseModel | None:
        """Log and count the outcome, and return the fact to publish; None if it was deferred."""
        posting_id = command.posting_id if command else None
        mailing_id = command.mailing_id if command else None
        recipient_id = command.recipient_id if command else None
        context = message_context(self._channel, message, command)
        fact: dict[str, Any] = {
            "fact_id": message.attempt_id,
            "at": datetime.fromtimestamp(self._clock.now(), UTC),
            "message_id": message.id,
            "posting_id": posting_id,
            "mailing_id": mailing_id,
            "recipient_id": recipient_id,
            "channel": self._channel,
            "attempt": message.attempt,
        }
        match outcome:
            case Done(Expired(reason)) | Dead(reason, ExpiredError()):
                self._expired.inc()
                logger.warning("message expired", extra=context | {"reason": reason})
                expires_at = command.expires_at if command else None
                return MessageExpired(**fact, reason=reason, expires_at=expires_at)
            case Done(result):
                match result:
                    case Returned(code):
                        self._returned.inc()
                        logger.info("message returned", extra=context | {"reason": code.value})
                        return MessageReturned(**fact, code=code)
                    case Sent(duration, None):
                        self._repeats.inc()
                        logger.info("message repeated, already sent", extra=context)
                    case Sent(duration, status):
                        self._sent.inc()
                        self._duration.observe(duration)
                        context |= {"duration": round(duration, 6), "status": status}
                        logger.info("message sent", extra=context)
                # A message is sent once, so the fact has the same id each time. It is published
                # again for a repeat: the first one may be lost with the connection.
                return MessageSent(**fact | {"fact_id": f"{message.id}/sent"}, duration=duration)
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
            case Dead(reason, error) | DispatchFailed(reason, error):
                self._failed.inc()
                logger.error("message failed", extra=context | {"reason": reason})
                return MessageFailed(**fact, reason=reason, code=domain.reason_code(error))
