"""From a message to a request and back: sends a callback and says what came of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel

from services.callback import domain, metrics
from services.callback.settings import CallbackSettings
from shared.amqp.message import Dead, Deferred, DispatchFailed, Done, Message, Outcome, Retried
from shared.clock import Clock
from shared.contracts.callback import SendCallback
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDead,
    CallbackDelivered,
    CallbackDispatchFailed,
)
from shared.errors import ExpiredError
from shared.http.client import Client, HttpResponse, RequestFailedError
from shared.http.guard import ForbiddenTargetError, Target, parse_target
from shared.resilience.lanes import Lanes

logger = logging.getLogger(__name__)

# Answers that say the target as a whole can't keep up; any other proves it alive.
OVERLOADED: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver took it. `duration` in seconds."""

    status: int
    duration: float


class Sender:
    """Delivers callbacks; its collaborators are shared by all of a worker's messages."""

    def __init__(
        self,
        client: Client,
        lanes: Lanes,
        labels: metrics.Labels,
        settings: CallbackSettings,
        clock: Clock,
    ) -> None:
        self._client = client
        self._lanes = lanes
        self._labels = labels
        self._settings = settings
        self._clock = clock

    async def handle(self, message: Message, order: SendCallback) -> Delivered:
        """Send one try.

        Raises:
            ExpiredError: it is too late.
            PermanentError: forbidden, unsignable, or refused for good.
            TransientError: not delivered; a later try may be.
            Deferred: the target's lane has no place.
        """
        if order.expires_at is not None and self._clock.now() >= order.expires_at.timestamp():
            raise ExpiredError(f"expired at {order.expires_at.isoformat()}")
        target = parse_target(order.target_url)
        lane = self._lanes.lane(target.origin)
        probe = await self._lanes.enter(lane, message.deferrals)
        alive: bool | None = None
        started = self._clock.monotonic()
        try:
            reply = await self._send(message, order, target)
            alive = reply.status not in OVERLOADED
        except RequestFailedError:
            alive = False
            raise
        finally:
            duration = self._clock.monotonic() - started
            self._lanes.leave(lane, probe=probe, alive=alive, duration=duration)
            if alive is not None:
                self._labels.duration(target.origin).observe(duration)
        domain.judge(reply.status, reply.retry_after, now=self._clock.now())
        return Delivered(reply.status, duration)

    async def _send(
        self,
        message: Message,
        order: SendCallback,
        target: Target,
    ) -> HttpResponse:
        keys = self._keys(order)
        content_type: str | None = domain.JSON
        if order.format == "json":
            body = domain.serialised(order.payload)
        elif order.format == "form":
            body, content_type = domain.urlencoded(order.payload).encode(), domain.FORM
        else:
            body, content_type = b"", None
            query = domain.urlencoded(order.payload)
            target = parse_target(domain.with_query(order.target_url, query))
        # Signed at the last moment: receivers take a timestamp for five minutes, and a line or a
        # tier may have held the message for longer.
        headers = domain.signed_headers(
            message.id, body, keys, timestamp=int(self._clock.now()), content_type=content_type
        )
        if order.headers:
            headers.extend(domain.allowed_headers(order.headers))
        traceparent = message.traceparent
        if traceparent is not None and "traceparent" not in headers:
            headers["traceparent"] = traceparent
        timeout = order.timeout or self._settings.timeout
        return await self._client.send(target, order.target_method, headers, body, timeout)

    def _keys(self, order: SendCallback) -> list[domain.Key]:
        try:
            return [domain.key(secret) for secret in self._secrets(order)]
        except domain.SigningError:
            metrics.HMAC_ERRORS.inc()
            raise

    def _secrets(self, order: SendCallback) -> Sequence[str]:
        if order.secret_ref is None:
            return order.secrets
        secret = self._settings.secrets.get(order.secret_ref)
        if secret is None:
            raise domain.SigningError(f"no secret named {order.secret_ref!r} is configured")
        return (secret,) if isinstance(secret, str) else secret


class Reporter:
    """Says what became of each message: one log line, its counts, its fact."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def report(
        self,
        message: Message,
        order: SendCallback | None,
        outcome: Outcome[Delivered],
    ) -> BaseModel | None:
        """Log, count, and give the fact to publish; a postponed message has none."""
        target = _origin(order)
        client_id = order.client_id if order else None
        context: dict[str, object] = {
            "callback_id": message.id,
            "client_id": client_id,
            "trace_id": message.trace_id,
            "target_url": target,
            "attempt": message.attempt,
        }
        told: dict[str, Any] = {
            "fact_id": message.attempt_id,
            "at": datetime.fromtimestamp(self._clock.now(), UTC),
            "callback_id": message.id,
            "client_id": client_id,
            "target": target,
            "attempt": message.attempt,
        }
        if message.owner:
            told |= {"owner": message.owner, "dispatch": message.dispatch}
        match outcome:
            case Done(Delivered(status, duration)):
                metrics.SUCCESS.inc()
                context |= {"status": status, "duration": round(duration, 6)}
                logger.info("callback delivered", extra=context)
                return CallbackDelivered(
                    **told,
                    status=status,
                    duration=duration,
                )
            case Retried(tier, not_before, error):
                metrics.ERROR.inc()
                context |= {"error": str(error), "tier": tier.name}
                logger.warning("callback attempt failed", extra=context)
                return CallbackAttemptFailed(
                    **told,
                    error=str(error),
                    next_at=datetime.fromtimestamp(not_before, UTC),
                )
            case Deferred(tier, reason):
                context |= {"reason": reason, "tier": tier.name}
                logger.debug("callback postponed", extra=context)
                return None
            case Dead(reason):
                if order is not None:
                    metrics.ERROR.inc()
                logger.error("callback dead", extra=context | {"reason": reason})
                return CallbackDead(
                    **told,
                    reason=reason,
                )
            case DispatchFailed(reason):
                metrics.ERROR.inc()
                context |= {"reason": reason, "owner": message.owner}
                logger.warning("callback given back", extra=context)
                return CallbackDispatchFailed(
                    **told,
                    reason=reason,
                    final=outcome.final,
                )


def _origin(order: SendCallback | None) -> str | None:
    """Scheme, host and port; the rest of a URL may carry a token, so it goes nowhere else."""
    if order is None:
        return None
    try:
        return parse_target(order.target_url).origin
    except ForbiddenTargetError:
        return None
