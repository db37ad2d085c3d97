"""Reports transitions of callbacks: a log line, metrics and a fact on `outcomes` for each."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from services.scheduler import metrics
from services.scheduler.domain import ScheduledCallback, Transition
from services.scheduler.messages import callback_id
from services.scheduler.records import Claim, NewCallback
from shared.amqp.fact_sender import FactSender
from shared.amqp.publisher import new_id
from shared.contracts.schedule_facts import ScheduleFact
from shared.contracts.schedules import Status

logger = logging.getLogger(__name__)

_LEVELS: Final = {Status.RETRYING: logging.WARNING, Status.FAILED: logging.ERROR}


class StoredFact(BaseModel):
    """A stored fact, with all its fields. A process of another version may have stored it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str


class FactPublisher:
    """Reports transitions, and the steps between them.

    The broker has answered for the facts about transitions when a method returns. Those about steps
    are for the journal alone, so nothing waits for them.
    """

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

    def created(
        self,
        requests: Sequence[NewCallback],
        callbacks: Mapping[UUID, ScheduledCallback],
        now: datetime,
    ) -> None:
        """Report the callbacks that were created by these requests."""
        self._sender.send_batch(
            "schedule.created",
            [
                _created(new, callback, now)
                for new in requests
                if (callback := callbacks.get(new.id))
            ],
        )

    def rescheduled(self, callback: ScheduledCallback, now: datetime) -> None:
        """Report that a waiting callback is due at another time."""
        self._sender.send_batch("schedule.rescheduled", [_rescheduled(callback, now)])

    def dispatched(self, claims: Sequence[Claim], now: datetime) -> None:
        """Report claims whose publish the broker has confirmed."""
        self._sender.send_batch(
            "schedule.dispatched", [_dispatched(claim, now) for claim in claims]
        )

    async def publish_json(self, facts: Sequence[str]) -> None:
        """Publish facts that were stored as JSON."""
        await self._sender.send_confirmed([StoredFact.model_validate_json(f) for f in facts])


# Facts about steps are mappings: one for each creation and each dispatch. A model would take 7 µs
# instead of 2, and creating a callback 128 in all (`python -m tests.bench -k g`).
def _created(new: NewCallback, callback: ScheduledCallback, now: datetime) -> Mapping[str, object]:
    """Return a `ScheduleCreated`."""
    schedule_id = str(new.id)
    return {
        "type": "schedule.created",
        "fact_id": f"{schedule_id}/created",
        "at": now,
        "schedule_id": schedule_id,
        "client_id": new.client_id or None,
        "group_key": new.group_key,
        "event_key": new.event_key,
        "trace_id": _trace_id(new.traceparent),
        "run_at": callback.run_at,
        "target": new.target,
        "recurs": callback.recurs,
    }


def _rescheduled(callback: ScheduledCallback, now: datetime) -> Mapping[str, object]:
    """Return a `ScheduleRescheduled`."""
    return {
        "type": "schedule.rescheduled",
        "fact_id": new_id(),
        "at": now,
        "schedule_id": callback.id,
        "client_id": callback.client_id or None,
        "group_key": callback.group_key,
        "event_key": callback.event_key,
        "run_at": callback.next_at,
    }


def _dispatched(claim: Claim, now: datetime) -> Mapping[str, object]:
    """Return a `ScheduleDispatched`."""
    callback = claim.callback
    schedule_id = str(callback.id)
    return {
        "type": "schedule.dispatched",
        "fact_id": f"{schedule_id}/{callback.dispatch}/dispatched",
        "at": now,
        "schedule_id": schedule_id,
        "client_id": callback.client_id or None,
        "group_key": callback.group_key,
        "event_key": callback.event_key,
        "trace_id": _trace_id(claim.traceparent),
        "callback_id": callback_id(schedule_id, callback.occurrence if callback.recurs else None),
        "dispatch": callback.dispatch,
        "lag": max((now - claim.due_at).total_seconds(), 0.0),
    }


def _trace_id(traceparent: str | None) -> str | None:
    return traceparent[3:35] if traceparent else None


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
