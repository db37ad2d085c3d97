"""Settles deliveries by the facts of the callback service, in batches."""

import logging
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from pydantic import BaseModel

from services.subscriptions import metrics
from services.subscriptions.deliveries.claims import Claims, EndpointResult, Settlement
from services.subscriptions.deliveries.domain import (
    Attempt,
    Delivery,
    attempts,
    delivery_id,
    endpoint_failed,
    endpoint_gone,
    settle,
)
from shared.amqp.message import Dead, Message, Outcome
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDelivered,
    CallbackDispatchFailed,
    Fact,
    Facts,
)
from shared.resilience.batching import Batcher
from shared.skew import ClockSkew

logger = logging.getLogger(__name__)

# AMQP messages settled in one transaction. Each holds up to 500 facts.
MAX_MESSAGES: Final = 4


class Settler:
    """Applies facts to deliveries; several messages share one transaction.

    wake: called when deliveries may have become due.
    """

    def __init__(self, claims: Claims, skew: ClockSkew, wake: Callable[[], None]) -> None:
        self._claims = claims
        self._skew = skew
        self._wake = wake
        self._batches: Batcher[Sequence[Fact], None] = Batcher(self._settle, max_size=MAX_MESSAGES)

    async def run(self) -> None:
        """Settle until cancelled."""
        await self._batches.run()

    async def handle(self, _: Message, facts: Facts) -> None:
        """Settle the facts of a message; the results are committed on return.

        Raises:
            StoreConnectionLostError: repeat it later.
        """
        await self._batches.add(facts.facts)

    async def settle(self, facts: Sequence[Fact]) -> None:
        """Settle facts of this process; the results are committed on return."""
        await self._batches.add(facts)

    async def _settle(self, messages: list[Sequence[Fact]]) -> list[None]:
        by_id: dict[int, list[Fact]] = {}
        for fact in (fact for facts in messages for fact in facts):
            if (id_ := delivery_id(fact)) is not None:
                by_id.setdefault(id_, []).append(fact)
        failed = [id_ for id_, facts in by_id.items() if any(map(_failed, facts))]
        changed: list[Delivery] = []

        def decide(deliveries: Sequence[Delivery]) -> Settlement:
            changed.clear()
            made: list[Attempt] = []
            endpoints: dict[UUID, EndpointResult] = {}
            for before in deliveries:
                facts = by_id[before.id]
                made += attempts(before, facts)
                if (after := settle(before, facts)) is not before:
                    changed.append(after)
                if (result := _endpoint_result(before, facts)) is not None:
                    earlier = endpoints.get(before.endpoint_id, result)
                    endpoints[before.endpoint_id] = EndpointResult(
                        earlier.accepted or result.accepted, earlier.gone | result.gone
                    )
            return Settlement(changed, made, endpoints)

        now = await self._claims.settle(sorted(by_id), failed, decide)
        self._skew.observe(max((fact.at for facts in messages for fact in facts), default=now), now)
        for delivery in changed:
            if delivery.status in metrics.SETTLED:
                metrics.SETTLED[delivery.status].inc()
        self._wake()
        return [None] * len(messages)


def _failed(fact: Fact) -> bool:
    return isinstance(fact, CallbackAttemptFailed | CallbackDispatchFailed)


def _endpoint_result(before: Delivery, facts: Sequence[Fact]) -> EndpointResult | None:
    """Return what facts about a delivery report about its endpoint, or None if nothing.

    A failure that arrives after the end of the delivery is ignored: it is older than the success.
    """
    accepted = any(isinstance(fact, CallbackDelivered) for fact in facts)
    if not accepted and (before.finished or not any(map(endpoint_failed, facts))):
        return None
    return EndpointResult(accepted, frozenset(fact.target for fact in facts if endpoint_gone(fact)))


def report(message: Message, _: Facts | None, outcome: Outcome[None]) -> BaseModel | None:
    """Log dead-lettered facts."""
    if isinstance(outcome, Dead):
        context = {"message_id": message.id, "reason": outcome.reason}
        logger.error("facts dead-lettered", extra=context)
    return None
