"""Reports transitions of callbacks: a log line, metrics and a fact on `outcomes` for each."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict

from services.scheduler import metrics
from services.scheduler.domain import Transition
from shared.amqp.fact_sender import FactSender
from shared.contracts.schedule_facts import ScheduleFact
from shared.contracts.schedules import Status

logger = logging.getLogger(__name__)

_LEVELS: Final = {Status.RETRYING: logging.WARNING, Status.FAILED: logging.ERROR}


class StoredFact(BaseModel):
    """A stored fact, with all its fields. A process of another version may have stored it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str


class FactPublisher:
    """Reports transitions; the broker has answered for their facts when a method returns."""

    def __init__(self, sender: FactSender) -> None:
        self._sender = sender

    async def report(self, transitions: Sequence[Transition], now: datetime) -> None:
        """Count, log and publish transitions."""
        for transition in transitions:
            metrics.SETTLED[transition.status].inc()
            if transition.misfired:
                metrics.MISFIRES.labels("skip").inc()
            _log(transition)
        await self.publish(transitions, now)

    async def publish(self, transitions: Sequence[Transition], now: datetime) -> None:
        """Publish facts, and wait until the broker has answered for each."""
        await self._sender.send_confirmed([fact(transition, now) for transition in transitions])

    async def publish_json(self, facts: Sequence[str]) -> None:
        """Publish facts that were stored as JSON."""
        await self._sender.send_confirmed([StoredFact.model_validate_json(f) for f in facts])


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
