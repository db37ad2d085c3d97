"""Says what happened to events: a log line, its counts, and a fact on `outcomes` for each."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Final

from pydantic_core import to_json

from services.scheduler import metrics
from services.scheduler.domain import Happened
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import Outgoing, Publisher, fresh_id
from shared.contracts.facts import FACTS
from shared.contracts.schedule_facts import ScheduleFact
from shared.contracts.schedules import Status
from shared.errors import InfrastructureError
from shared.topology import OUTCOMES

logger = logging.getLogger(__name__)

# Facts in one AMQP message, as shared/amqp/settlement.py has it.
MOST_FACTS: Final = 500
# Seconds to wait when the broker is lost or refuses, before going on.
WAIT: Final = 1.0
_LEVELS: Final = {Status.RETRYING: logging.WARNING, Status.FAILED: logging.ERROR}


class Announcer:
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
                await self._publisher.publish_all(_messages(facts))
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


def _messages(facts: list[ScheduleFact]) -> Iterator[Outgoing]:
    kind = attrgetter("type")
    for name, group in groupby(sorted(facts, key=kind), kind):
        batch = list(group)
        for start in range(0, len(batch), MOST_FACTS):
            yield Outgoing(
                name,
                Properties(
                    content_type="application/json",
                    type=FACTS,
                    message_id=fresh_id(),
                    delivery_mode=PERSISTENT,
                    timestamp=int(time.time()),
                    app_id="ringback",
                ),
                to_json({"facts": batch[start : start + MOST_FACTS]}),
                exchange=OUTCOMES,
                mandatory=False,  # a fact nobody listens for is no fault
            )
