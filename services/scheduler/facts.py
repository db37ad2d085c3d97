"""Reports transitions of callbacks: a log line, metrics and a fact on `outcomes` for each."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from services.scheduler import metrics
from services.scheduler.domain import Transition
from shared.amqp.facts import fact_messages
from shared.amqp.publisher import Publisher
from shared.contracts.schedule_facts import ScheduleFact
from shared.contracts.schedules import Status
from shared.errors import InfrastructureError

logger = logging.getLogger(__name__)

# Seconds between two attempts to publish facts.
RETRY_DELAY: Final = 1.0
_LEVELS: Final = {Status.RETRYING: logging.WARNING, Status.FAILED: logging.ERROR}


class FactPublisher:
    """Reports transitions; their facts are confirmed when a method returns."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def report(self, transitions: Sequence[Transition], now: datetime) -> None:
        """Count, log and publish transitions."""
        for transition in transitions:
            metrics.SETTLED[transition.status].inc()
            if transition.misfired:
                metrics.MISFIRES.labels("skip").inc()
            _log(transition)
        await self.publish(transitions, now)

    async def publish(self, transitions: Sequence[Transition], now: datetime) -> None:
        """Publish facts, and repeat until they are confirmed."""
        await self._publish([fact(transition, now) for transition in transitions])

    async def publish_json(self, facts: Sequence[str]) -> None:
        """Publish facts that were stored as JSON."""
        await self._publish([ScheduleFact.model_validate_json(each) for each in facts])

    async def _publish(self, facts: Sequence[ScheduleFact]) -> None:
        while facts:
            try:
                await self._publisher.publish_all(fact_messages(facts))
            except InfrastructureError as error:
                logger.warning("Cannot publish facts: %s. Retrying in %.0f s.", error, RETRY_DELAY)
                await asyncio.sleep(RETRY_DELAY)
                await self._publisher.ready()
            else:
                return


def _log(transition: Transition) -> None:
    callback = transition.callback
    level = _LEVELS.get(transition.status, logging.INFO)
    if logger.isEnabledFor(level):
        context: dict[str, object] = {
            "schedule_id": str(callback.id),
            "client_id": callback.client_id or None,
            "attempts": callback.attempts,
        }
        if transition.error is not None and transition.status is not Status.NOTIFIED:
            context["error"] = transition.error
        logger.log(level, "scheduled callback %s", transition.status.value, extra=context)


def fact(transition: Transition, now: datetime) -> ScheduleFact:
    """Return the fact that reports a transition."""
    callback = transition.callback
    return ScheduleFact(
        type=f"schedule.{transition.status.value}",
        fact_id=f"{callback.id}/{callback.dispatch}/{transition.status.value}",
        at=now,
        schedule_id=callback.id,
        client_id=callback.client_id or None,
        group_key=callback.group_key,
        event_key=callback.event_key,
        occurrence=callback.occurrence if callback.recurs else None,
        attempts=callback.attempts,
        error=transition.error,
        next_at=transition.next_at,
    )
