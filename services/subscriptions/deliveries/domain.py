"""The states of a delivery, and what a fact about it changes. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from http import HTTPStatus
from typing import Final
from uuid import UUID

from shared.contracts.callback import check_webhook_id
from shared.contracts.endpoints import DeliveryStatus
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDelivered,
    CallbackDispatchFailed,
    Fact,
)

# Seconds before the retries of one dispatch, through the retry tiers.
QUICK_DELAYS: Final = (1, 5, 60)
# Seconds before each main retry. With them, a delivery is attempted for 28 hours.
MAIN_DELAYS: Final = (300, 1800, 7200, 18_000, 36_000, 36_000)
# Seconds until a dispatch without an attempt, which expired in a queue, is repeated.
NO_ATTEMPT_DELAY: Final = 5.0
# Characters of an error that are stored.
MAX_ERROR: Final = 500
_MAX_WEBHOOK_ID: Final = 255
_MAX_ID: Final = (1 << 63) - 1  # of a bigint
# Far beyond the attempts of a dispatch, and far below the largest integer of a column.
_MAX_ATTEMPT: Final = 10_000


def user_event_webhook_id(user_id: int, event_id: str) -> str:
    """Return the `webhook-id` of a user event: the same for each attempt and each repeat."""
    webhook_id = f"{user_id}-{event_id}"
    try:
        if len(webhook_id) <= _MAX_WEBHOOK_ID:
            return check_webhook_id(webhook_id)
    except ValueError:
        pass
    return f"{user_id}-{sha256(event_id.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """The state of a delivery.

    dispatch: the number of the last dispatch. first_dispatch: the first after the last replay.
    failures: failed dispatches since then. earlier_attempts: those before the last dispatch.
    delay: seconds until it is due, if it is pending.
    """

    id: int
    endpoint_id: UUID
    status: DeliveryStatus
    dispatch: int
    first_dispatch: int
    failures: int
    earlier_attempts: int
    attempts: int
    last_error: str | None
    delay: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether its status is final, unless it is replayed."""
        return self.status in (
            DeliveryStatus.DELIVERED,
            DeliveryStatus.FAILED,
            DeliveryStatus.CANCELLED,
        )


def settle(delivery: Delivery, facts: Sequence[Fact]) -> Delivery:
    """Return a delivery after facts about it. Of an earlier dispatch, only a success counts."""
    for fact in facts:
        delivery = _after(delivery, fact)
    return delivery


def _after(delivery: Delivery, fact: Fact) -> Delivery:
    current = fact.dispatch == delivery.dispatch
    if delivery.finished:
        return delivery
    if isinstance(fact, CallbackDelivered) and (fact.dispatch or 0) >= delivery.first_dispatch:
        attempts = delivery.earlier_attempts + fact.attempt if current else delivery.attempts + 1
        return replace(
            delivery, status=DeliveryStatus.DELIVERED, attempts=attempts, last_error=None
        )
    if not current or delivery.status is not DeliveryStatus.DISPATCHED:
        return delivery
    attempts = max(delivery.attempts, delivery.earlier_attempts + fact.attempt)
    match fact:
        case CallbackAttemptFailed():
            return replace(delivery, attempts=attempts, last_error=fact.error[:MAX_ERROR])
        case CallbackDispatchFailed():
            failed = replace(delivery, attempts=attempts, last_error=fact.reason[:MAX_ERROR])
            return _after_failed_dispatch(failed, fact)
        case _:
            return delivery


def _after_failed_dispatch(delivery: Delivery, fact: CallbackDispatchFailed) -> Delivery:
    if fact.attempt == 0 and not fact.final:
        return replace(delivery, status=DeliveryStatus.PENDING, delay=NO_ATTEMPT_DELAY)
    failures = delivery.failures + 1
    if fact.final or failures > len(MAIN_DELAYS):
        return replace(delivery, status=DeliveryStatus.FAILED, failures=failures)
    delay = max(float(MAIN_DELAYS[failures - 1]), fact.retry_after)
    return replace(delivery, status=DeliveryStatus.PENDING, failures=failures, delay=delay)


def delivery_id(fact: Fact) -> int | None:
    """Return the id of the delivery that a fact is about, or None if it has no valid reference.

    The sender of a SendCallback can set its reference and its attempt. A number that the database
    cannot store would prevent the settlement of all facts in the same message.
    """
    reference = fact.reference or ""
    if not (reference.isascii() and reference.isdecimal() and len(reference) <= len(str(_MAX_ID))):
        return None
    id_ = int(reference)
    return id_ if id_ <= _MAX_ID and 0 <= fact.attempt <= _MAX_ATTEMPT else None


def endpoint_failed(fact: Fact) -> bool:
    """Return whether a fact reports an attempt that the endpoint did not accept."""
    failed = isinstance(fact, CallbackAttemptFailed | CallbackDispatchFailed)
    return failed and fact.attempt > 0


def endpoint_gone(fact: Fact) -> bool:
    """Return whether a fact reports that the endpoint is gone for good."""
    return isinstance(fact, CallbackDispatchFailed) and fact.status == HTTPStatus.GONE


@dataclass(frozen=True, slots=True)
class Attempt:
    """One HTTP request of a delivery."""

    delivery_id: int
    attempt: int
    fact: CallbackDelivered | CallbackAttemptFailed | CallbackDispatchFailed


def attempts(delivery: Delivery, facts: Sequence[Fact]) -> list[Attempt]:
    """Return the attempts in facts about the last dispatch of a delivery."""
    return [
        Attempt(delivery.id, delivery.earlier_attempts + fact.attempt, fact)
        for fact in facts
        if isinstance(fact, CallbackDelivered | CallbackAttemptFailed | CallbackDispatchFailed)
        and fact.dispatch == delivery.dispatch
        and fact.attempt > 0
    ]
