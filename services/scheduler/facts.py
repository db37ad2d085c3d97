"""Says what happened to events: a log line, its counts, and a fact on `outcomes` for each."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from services.scheduler import metrics
from services.scheduler.domain import Happened
from shared.amqp.facts import fact_messages
from shared.amqp.publisher import Publisher
from shared.contracts.schedule_facts import ScheduleFact
from shared.contracts.schedules import Status
from shared.errors import InfrastructureError

logger = logging.getLogger(__name__)

# Seconds to wait when the broker is lost or refuses, before going on.
WAIT: Final = 1.0
_LEVELS: Final = {Status.RETRYING: logging.WARNING, Status.FAILED: logging.ERROR}


class FactPublisher:
    """Tells of events; its facts are confirmed when it returns."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def tell(self, happened: Sequence[Happened], now: datetime) -> None:
        """Count, log, and publish facts until they are confirmed."""
        for each in happened:
            metrics.SETTLED[each.status].inc()
            if each.misfired:
                metrics.MISFIRES.labels("skip").inc()
            _log(each)
        await self.publish(happened, now)

    async def publish(self, happened: Sequence[Happened], now: datetime) -> None:
        """Publish facts, again and again until they are confirmed."""
        facts = [_fact(each, now) for each in happened]
        while facts:
            try:
                await self._publisher.publish_all(fact_messages(facts))
            except InfrastructureError as error:
                logger.warning("publishing facts again: %s", error)
                await asyncio.sleep(WAIT)
                await self._publisher.ready()
            else:
                return


def _log(happened: Happened) -> None:
    event = happened.event
    level = _LEVELS.get(happened.status, logging.INFO)
    if logger.isEnabledFor(level):
        context: dict[str, object] = {
            "schedule_id": str(event.id),
            "client_id": event.client_id or None,
            "attempts": event.attempts,
        }
        if happened.error is not None and happened.status is not Status.NOTIFIED:
            context["error"] = happened.error
        logger.log(level, "schedule %s", happened.status.value, extra=context)


def _fact(happened: Happened, now: datetime) -> ScheduleFact:
    event = happened.event
    return ScheduleFact(
        type=f"schedule.{happened.status.value}",
        fact_id=f"{event.id}/{event.dispatch}/{happened.status.value}",
        at=now,
        schedule_id=event.id,
        client_id=event.client_id or None,
        group_key=event.group_key,
        event_key=event.event_key,
        occurrence=event.occurrence if event.rules.rhythm else None,
        attempts=event.attempts,
        error=happened.error,
        next_at=happened.next_at,
    )
