"""Handles events: parses them, applies the rules, and stores the commands in batches."""

import logging
from typing import Final

from prometheus_client import Counter
from pydantic import BaseModel

from services.ingestion import metrics
from services.ingestion.domain import (
    EventOutcome,
    ReceivedEvent,
    Rules,
    UnknownEventError,
    content_id,
    decide,
)
from services.ingestion.outbox import Outbox
from services.ingestion.store import AcceptedEvent, PendingCommand, Store
from shared.amqp.message import Dead, Done, Message, Outcome
from shared.amqp.parsing import parse_message
from shared.clock import Clock
from shared.contracts.events import EVENT, Event
from shared.errors import ContractViolationError
from shared.resilience.batching import Batcher

logger = logging.getLogger(__name__)

_COUNTERS: Final = {
    EventOutcome.ACCEPTED: metrics.ACCEPTED,
    EventOutcome.DUPLICATE: metrics.DUPLICATE,
    EventOutcome.STALE: metrics.STALE,
    EventOutcome.SKIPPED: metrics.SKIPPED,
}


def parse_event(message: Message, *, max_bytes: int) -> ReceivedEvent:
    """Parse a message into an event. Its id is its own, the message's, or a hash of the content.

    Raises:
        ContractViolationError: it is not a valid event; names every wrong field, but no value.
    """
    event = parse_message(message, {EVENT: Event}, max_bytes=max_bytes)
    at = event.occurred_at.timestamp() if event.occurred_at else message.sent_at
    return ReceivedEvent(event, event.event_id or message.id or content_id(event), at)


def identity(received: ReceivedEvent) -> str:
    """Return the event's id, which every copy of the message has."""
    return received.id


class Handler:
    """Handles events; the events of a batch are stored in one transaction."""

    def __init__(
        self, rules: Rules, store: Store, outbox: Outbox, clock: Clock, *, batch: int
    ) -> None:
        self._rules = rules
        self._store = store
        self._outbox = outbox
        self._clock = clock
        self._batches: Batcher[AcceptedEvent, EventOutcome] = Batcher(self._accept, max_size=batch)

    async def run(self) -> None:
        """Store batches until cancelled."""
        await self._batches.run()

    async def handle(self, message: Message, received: ReceivedEvent) -> EventOutcome:
        """Apply the rules to an event. Its commands are committed when this returns.

        Raises:
            UnknownEventError: no rule matches the event.
            RuleError: a rule cannot be applied to it.
            StoreConnectionLostError: it may not have been stored; repeat it later.
        """
        now = self._clock.now()
        decision = decide(self._rules, received, now=now)
        if decision.outcome is not EventOutcome.ACCEPTED:
            return decision.outcome
        commands = tuple(
            PendingCommand(command, now, message.traceparent) for command in decision.commands
        )
        return await self._batches.add(AcceptedEvent(received.key, commands))

    async def _accept(self, events: list[AcceptedEvent]) -> list[EventOutcome]:
        first = {event.key: event for event in reversed(events)}
        lease = self._outbox.available_lease()
        new = await self._store.accept(list(first.values()), lease=lease)
        self._outbox.add([command for key in new for command in first[key].commands], lease)
        return [
            EventOutcome.ACCEPTED
            if event.key in new and event is first[event.key]
            else EventOutcome.DUPLICATE
            for event in events
        ]


def report(
    message: Message, received: ReceivedEvent | None, outcome: Outcome[EventOutcome]
) -> BaseModel | None:
    """Count and log the outcome of an event."""
    context: dict[str, object] = {"message_id": message.id}
    if received is not None:
        event = received.event
        context |= {"from_service": event.from_service, "event": event.event}
    match outcome:
        case Done(result):
            _COUNTERS[result].inc()
            logger.debug("event %s", result, extra=context)
        case Dead(reason, error):
            _counter_of(error).inc()
            logger.error("event dead-lettered", extra=context | {"reason": reason})
        case _:
            pass
    return None


def _counter_of(error: Exception) -> Counter:
    match error:
        case UnknownEventError():
            return metrics.UNKNOWN
        case ContractViolationError():
            return metrics.INVALID
        case _:
            return metrics.FAILED
