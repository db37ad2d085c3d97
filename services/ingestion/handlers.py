"""From a message to an event in the database: reads, decides, and takes in, in batches."""

import logging
from enum import StrEnum
from typing import Final

from prometheus_client import Counter
from pydantic import BaseModel

from services.ingestion import metrics
from services.ingestion.domain import (
    Received,
    Rules,
    UnknownEventError,
    Verdict,
    content_id,
    decide,
)
from services.ingestion.outbox import Outbox
from services.ingestion.store import Accepted, Pending, Store
from shared.amqp import parsing as reading
from shared.amqp.message import Dead, Done, Message, Outcome
from shared.clock import Clock
from shared.contracts.events import EVENT, Event
from shared.errors import ContractViolationError
from shared.resilience.batching import Batcher

logger = logging.getLogger(__name__)


class Became(StrEnum):
    """What became of an event that was understood."""

    ACCEPTED = "accepted"  # its commands are in the outbox
    DUPLICATE = "duplicate"  # it was accepted before
    STALE = "stale"  # too old
    SKIPPED = "skipped"  # no rule's condition holds


_COUNTERS: Final = {
    Became.ACCEPTED: metrics.ACCEPTED,
    Became.DUPLICATE: metrics.DUPLICATE,
    Became.STALE: metrics.STALE,
    Became.SKIPPED: metrics.SKIPPED,
}


def read(message: Message, *, max_bytes: int) -> Received:
    """The event in a message, and by which id it is known: its own, the message's, or its content.

    Raises:
        ContractViolationError: it is none; every wrong field is named, no value is.
    """
    event = reading.parse_message(message, {EVENT: Event}, max_bytes=max_bytes)
    at = event.occurred_at.timestamp() if event.occurred_at else message.properties.timestamp
    return Received(event, event.event_id or message.id or content_id(event), at)


def identity(received: Received) -> str:
    """The id that the message is known by on every copy."""
    return received.id


class Handler:
    """Takes events in; those of a batch are one transaction."""

    def __init__(
        self, rules: Rules, store: Store, outbox: Outbox, clock: Clock, *, batch: int
    ) -> None:
        self._rules = rules
        self._store = store
        self._outbox = outbox
        self._clock = clock
        self._batches: Batcher[Accepted, Became] = Batcher(self._accept, max_size=batch)

    async def run(self) -> None:
        """Take in what comes until cancelled."""
        await self._batches.run()

    async def handle(self, message: Message, received: Received) -> Became:
        """Act on an event; what follows from it is committed when this returns.

        Raises:
            UnknownEventError: no rule is about it.
            RuleFailed: a rule can't be applied to it.
            StoreConnectionLostError: repeat it later.
        """
        now = self._clock.now()
        decision = decide(self._rules, received, now=now)
        match decision.verdict:
            case Verdict.STALE:
                return Became.STALE
            case Verdict.SKIP:
                return Became.SKIPPED
            case Verdict.ACT:
                commands = tuple(
                    Pending(command, now, message.traceparent) for command in decision.commands
                )
                return await self._batches.add(Accepted(received.key, commands))

    async def _accept(self, events: list[Accepted]) -> list[Became]:
        first = {event.key: event for event in reversed(events)}
        leased = self._outbox.lease()
        fresh = await self._store.accept(list(first.values()), lease=leased)
        self._outbox.take([each for key in fresh for each in first[key].commands], leased)
        return [
            Became.ACCEPTED
            if event.key in fresh and event is first[event.key]
            else Became.DUPLICATE
            for event in events
        ]


def report(
    message: Message, received: Received | None, outcome: Outcome[Became]
) -> BaseModel | None:
    """Count and log what became of an event."""
    context: dict[str, object] = {"message_id": message.id}
    if received is not None:
        event = received.event
        context |= {"from_service": event.from_service, "event": event.event}
    match outcome:
        case Done(became):
            _COUNTERS[became].inc()
            logger.debug("event %s", became, extra=context)
        case Dead(reason, error):
            _counter_of(error).inc()
            logger.error("event dead", extra=context | {"reason": reason})
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
