"""Settles events by the facts that come back from the callback service, in batches."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from pydantic import BaseModel

from services.scheduler import domain
from services.scheduler.domain import Happened, ScheduledCallback, Step
from services.scheduler.facts import FactPublisher
from services.scheduler.store import Past, Store
from shared.amqp.message import Dead, Message, Outcome
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDelivered,
    CallbackDispatchFailed,
    Fact,
    Facts,
)
from shared.contracts.schedules import Status
from shared.resilience.batching import Batcher

logger = logging.getLogger(__name__)

# AMQP messages of facts in one transaction; each holds up to 500.
MOST_MESSAGES: Final = 20


class Settler:
    """Turns facts into what becomes of events; several messages make one transaction.

    `wake` hears when an event will want attention again; `turn` is waited for before each batch.
    """

    def __init__(
        self,
        store: Store,
        announcer: FactPublisher,
        wake: Callable[[datetime], None],
        turn: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._wake = wake
        self._turn = turn
        self._batches: Batcher[Facts, None] = Batcher(self._settle, most=MOST_MESSAGES)

    async def run(self) -> None:
        """Settle until cancelled."""
        await self._batches.run()

    async def handle(self, _: Message, facts: Facts) -> None:
        """Settle the facts of a message; what follows is committed and told when it returns.

        Raises:
            StoreConnectionLostError: repeat it later.
        """
        await self._batches.add(facts)

    async def _settle(self, messages: list[Facts]) -> list[None]:
        await self._turn()
        by_event: dict[UUID, list[Fact]] = {}
        for fact in (fact for message in messages for fact in message.facts):
            if (event_id := _event_id(fact.callback_id)) is not None:
                by_event.setdefault(event_id, []).append(fact)
        happened: list[Happened] = []
        after: list[ScheduledCallback] = []
        found: set[UUID] = set()

        def decide(
            live: Mapping[UUID, ScheduledCallback], now: datetime
        ) -> list[ScheduledCallback]:
            happened.clear()
            after.clear()
            found.update(live)
            for event in live.values():
                state, told = settled(event, by_event[event.id], now)
                happened.extend(told)
                if state is not event:
                    after.append(state)
            return after

        now = await self._store.change(list(by_event), decide)
        for event in after:
            if not event.ended:
                self._wake(event.next_at)
        await self._announcer.tell(happened, now)
        if gone := [event_id for event_id in by_event if event_id not in found]:
            # Committed before, but perhaps never told: told again under the same fact_id.
            past = await self._store.past(gone)
            await self._announcer.publish(
                [each for key, end in past.items() for each in repeated(end, by_event[key])], now
            )
        return [None] * len(messages)


def settled(
    event: ScheduledCallback, facts: Sequence[Fact], now: datetime
) -> tuple[ScheduledCallback, list[Happened]]:
    """What becomes of an event by facts about it, in order."""
    told = []
    for fact in facts:
        event, happened = _step(event, fact, now)
        if happened is not None:
            told.append(happened)
        if event.ended:
            break
    return event, told


def _step(event: ScheduledCallback, fact: Fact, now: datetime) -> Step:
    match fact:
        case CallbackDelivered():
            return domain.delivered(event, fact.dispatch, fact.attempt, now)
        case CallbackAttemptFailed():
            return domain.tried(event, fact.dispatch, fact.attempt, fact.error, fact.next_at)
        case CallbackDispatchFailed():
            return domain.given_back(
                event, fact.dispatch, fact.attempt, fact.reason, now, final=fact.final
            )
        case _:
            return event, None


def repeated(past: Past, facts: Sequence[Fact]) -> list[Happened]:
    """What was told, or should have been, when one of these facts ended the event."""
    event = past.event
    for fact in facts:
        delivered = isinstance(fact, CallbackDelivered) and event.status is Status.NOTIFIED
        given_back = (
            isinstance(fact, CallbackDispatchFailed)
            and event.status in (Status.FAILED, Status.CANCELLED)
            and fact.dispatch == event.dispatch
        )
        if delivered or given_back:
            return [Happened(event, event.status, event.last_error)]
    return []


def _event_id(callback_id: str) -> UUID | None:
    try:
        return UUID(callback_id.partition(".")[0])
    except ValueError:
        return None


def report(message: Message, _: Facts | None, outcome: Outcome[None]) -> BaseModel | None:
    """Log what could not be settled."""
    if isinstance(outcome, Dead):
        logger.error("facts dead", extra={"message_id": message.id, "reason": outcome.reason})
    return None
