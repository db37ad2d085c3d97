"""Sends a callback and reports the outcome."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from services.callback import domain, metrics, spans
from services.callback.kept import Keeper
from services.callback.pauses import Pauses
from services.callback.settings import CallbackSettings
from shared.amqp.message import Dead, Deferred, DispatchFailed, Done, Message, Outcome, Retried
from shared.clock import Clock
from shared.contracts.callback import SendCallback, check_webhook_id
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDead,
    CallbackDelivered,
    CallbackDispatchFailed,
)
from shared.errors import ContractViolationError, ExpiredError, PermanentError
from shared.http.client import Client, HttpResponse, RequestFailedError
from shared.http.guard import ForbiddenTargetError, Target, parse_target
from shared.resilience.lanes import Lanes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver responded with a 2xx status after `duration` seconds."""

    status: int
    duration: float


@dataclass(frozen=True, slots=True)
class Attempted:
    """An attempt, for the report: its seconds and its response, None if there was none."""

    duration: float
    response: HttpResponse | None


class CallbackSender:
    """Sends callbacks; each worker has one."""

    def __init__(  # noqa: PLR0913 - the composition root passes each collaborator by name
        self,
        client: Client,
        *,
        lanes: Lanes,
        pauses: Pauses,
        labels: metrics.TargetLabels,
        settings: CallbackSettings,
        clock: Clock,
    ) -> None:
        self._client = client
        self._lanes = lanes
        self._pauses = pauses
        self._labels = labels
        self._settings = settings
        self._clock = clock

    async def handle(self, message: Message, command: SendCallback) -> Delivered:
        """Make one attempt.

        Raises:
            ContractViolationError: the message_id, which serves as the id, is ambiguous.
            ExpiredError: `expires_at` has passed.
            PermanentError: the target is forbidden, a fingerprint has no https URL, signing failed,
                or the receiver responded 410.
            TransientError: the attempt failed; a later one may succeed.
            DeferredError: the target is paused, its lane is full, or its breaker is open.
        """
        message.record = None
        self._check_expiry(command)
        if command.id is None:
            _check_message_id(message.id)
        target = parse_target(command.target_url)
        if command.fingerprint is not None and target.url.scheme != "https":
            raise PermanentError("a fingerprint requires an https URL")
        self._pauses.check(target.origin, message.deferrals)
        lane = self._lanes.lane(target.origin, command.client_id)
        probe = await self._lanes.enter(lane, message.deferrals)
        response: HttpResponse | None = None
        alive: bool | None = None
        pause = 0.0
        started = self._clock.monotonic()
        try:
            self._check_expiry(command)  # again: it may have waited for its place
            self._pauses.check(target.origin, message.deferrals)
            response = await self._send(message, command, target)
            if response.retry_after is not None:
                pause = domain.requested_pause(
                    response.status, response.retry_after, now=self._clock.now()
                )
            alive = domain.shows_alive(response.status, pause)
        except RequestFailedError:
            alive = False
            raise
        finally:
            duration = self._clock.monotonic() - started
            self._lanes.leave(lane, probe=probe, alive=alive, duration=duration, pause=pause)
            if alive is not None:
                message.record = Attempted(duration, response)
                self._labels.duration(target.origin).observe(duration)
        domain.check_response(response.status, response.retry_after, now=self._clock.now())
        return Delivered(response.status, duration)

    def _check_expiry(self, command: SendCallback) -> None:
        if command.expires_at is not None and self._clock.now() >= command.expires_at.timestamp():
            raise ExpiredError(f"expired at {command.expires_at.isoformat()}")

    async def _send(
        self,
        message: Message,
        command: SendCallback,
        target: Target,
    ) -> HttpResponse:
        keys = self._keys(command)
        content_type: str | None = domain.JSON
        if command.format == "json":
            signed = body = domain.encode_json(command.payload)
        elif command.format == "form":
            signed = body = domain.encode_form(command.payload).encode()
            content_type = domain.FORM
        else:
            body, content_type = b"", None
            query = domain.encode_form(command.payload)
            target = parse_target(domain.with_query(command.target_url, query))
            signed = target.url.raw_query_string.encode()  # the body is empty
        # Sign right before sending: receivers accept a timestamp for five minutes, and the message
        # may have waited longer in a lane or a tier.
        headers = domain.signed_headers(
            message.id, signed, keys, timestamp=int(self._clock.now()), content_type=content_type
        )
        if command.headers:
            headers.extend(domain.allowed_headers(command.headers))
        span = None if message.span is None else spans.attempt(message, command, target)
        traceparent = message.traceparent if span is None else span.traceparent
        if traceparent is not None and "traceparent" not in headers:
            headers["traceparent"] = traceparent
        timeout = command.timeout or self._settings.timeout
        response = self._client.send(
            target,
            command.target_method,
            headers,
            body,
            timeout,
            fingerprint=command.fingerprint,
        )
        return await (response if span is None else spans.observed(span, response))

    def _keys(self, command: SendCallback) -> list[domain.SigningKey]:
        try:
            return [domain.signing_key(secret) for secret in self._secrets(command)]
        except domain.SigningError:
            metrics.HMAC_ERRORS.inc()
            raise

    def _secrets(self, command: SendCallback) -> Sequence[str]:
        if command.secret_ref is None:
            return command.secrets
        secret = self._settings.secrets.get(command.secret_ref)
        if secret is None:
            raise domain.SigningError(f"no secret named {command.secret_ref!r} is configured")
        return (secret,) if isinstance(secret, str) else secret


class Reporter:
    """Reports the outcome of each message: a log line, metrics and a fact."""

    def __init__(self, clock: Clock, keeper: Keeper) -> None:
        self._clock = clock
        self._keeper = keeper

    def report(
        self,
        message: Message,
        command: SendCallback | None,
        outcome: Outcome[Delivered],
    ) -> BaseModel | None:
        """Log and count the outcome, and return the fact to publish; None if it was deferred."""
        target = _origin(command)
        client_id = command.client_id if command else None
        context: dict[str, object] = {
            "callback_id": message.id,
            "client_id": client_id,
            "trace_id": message.trace_id,
            "target_url": target,
            "attempt": message.attempt,
        }
        if isinstance(outcome, Deferred):
            deferred = {"reason": outcome.reason, "tier": outcome.tier.name}
            logger.debug("callback deferred", extra=context | deferred)
            return None
        attempted: Attempted | None = message.record
        fact: dict[str, Any] = {
            "fact_id": message.attempt_id,
            "at": datetime.fromtimestamp(self._clock.now(), UTC),
            "callback_id": message.id,
            "client_id": client_id,
            "target": target,
            "attempt": message.attempt,
            "trace_id": message.trace_id,
            "replay": message.replay,
        }
        if attempted is not None:
            fact["response"] = self._keeper.response(attempted.response)
        if command is not None:
            delivered = isinstance(outcome, Done)
            fact["request"] = self._keeper.request(message, delivered=delivered)
        took = None if attempted is None else attempted.duration
        if message.owner:
            fact |= {
                "owner": message.owner,
                "dispatch": message.dispatch,
                "reference": message.reference,
            }
        match outcome:
            case Done(Delivered(status, duration)):
                metrics.SUCCESS.inc()
                context |= {"status": status, "duration": round(duration, 6)}
                logger.info("callback delivered", extra=context)
                return CallbackDelivered(**fact, status=status, duration=duration)
            case Retried(tier, not_before, error):
                metrics.ERROR.inc()
                context |= {"error": str(error), "tier": tier.name}
                logger.warning("callback attempt failed", extra=context)
                return CallbackAttemptFailed(
                    **fact,
                    error=str(error),
                    status=_status(error),
                    duration=took,
                    next_at=datetime.fromtimestamp(not_before, UTC),
                )
            case Dead(reason):
                if command is not None:
                    metrics.ERROR.inc()
                logger.error("callback dead-lettered", extra=context | {"reason": reason})
                return CallbackDead(
                    **fact, reason=reason, status=_status_of(attempted), duration=took
                )
            case DispatchFailed(reason):
                metrics.ERROR.inc()
                context |= {"reason": reason, "owner": message.owner}
                logger.warning("callback dispatch failed", extra=context)
                fact["attempt"] -= not outcome.attempted
                return CallbackDispatchFailed(
                    **fact,
                    reason=reason,
                    status=_status(outcome.error),
                    duration=took,
                    final=outcome.final,
                    retry_after=outcome.retry_after,
                )


def _status_of(attempted: Attempted | None) -> int | None:
    if attempted is None or attempted.response is None:
        return None
    return attempted.response.status


def _status(error: Exception) -> int | None:
    """Return the status of the response that is the cause of an error, if any."""
    if isinstance(error, domain.ResponseRejectedError | domain.GoneError):
        return error.status
    return None


def _check_message_id(message_id: str) -> None:
    try:
        check_webhook_id(message_id)
    except ValueError as error:
        raise ContractViolationError(f"message_id: {error}") from None


def _origin(command: SendCallback | None) -> str | None:
    """Return scheme, host and port; the rest of the URL may contain a token."""
    if command is None:
        return None
    try:
        return parse_target(command.target_url).origin
    except ForbiddenTargetError:
        return None
