"""Settles callbacks by the facts of the callback service, in batches."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

from pydantic import BaseModel

from services.scheduler import domain
from services.scheduler.changes import ChangeWriter
from services.scheduler.domain import ScheduledCallback, Step, Transition
from services.scheduler.facts import FactPublisher
from services.scheduler.store import Store
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
from shared.skew import ClockSkew

logger = logging.getLogger(__name__)

# AMQP messages settled in one transaction. Each holds up to 500 facts.
MAX_MESSAGES: Final = 20


class Settler:
    """Applies facts to callbacks; several messages share one transaction.

    wake_at: called with the next time at which a callback needs attention.
    wait_for_backlog: awaited before each batch.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        store: Store,
        changes: ChangeWriter,
        facts: FactPublisher,
        skew: ClockSkew,
        *,
        wake_at: Callable[[datetime], None],
        wait_for_backlog: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._changes = changes
        self._facts = facts
        self._skew = skew
        self._wake_at = wake_at
        self._wait_for_backlog = wait_for_backlog
        self._batches: Batcher[Facts, None] = Batcher(self._settle, max_size=MAX_MESSAGES)

    async def run(self) -> None:
        """Settle until cancelled."""
        await self._batches.run()

    async def handle(self, _: Message, facts: Facts) -> None:
        """Settle the facts of a message; the results are committed and published on return.

        Raises:
            StoreConnectionLostError: repeat it later.
        """
        await self._batches.add(facts)

    async def _settle(self, messages: list[Facts]) -> list[None]:
        await self._wait_for_backlog()
        by_id: dict[UUID, list[Fact]] = {}
        for fact in (fact for message in messages for fact in message.facts):
            if (id_ := _scheduled_id(fact.callback_id)) is not None:
                by_id.setdefault(id_, []).append(fact)

        def next_state(
            callback: ScheduledCallback, now: datetime
        ) -> tuple[ScheduledCallback, Sequence[Transition]]:
            return settle(callback, by_id[callback.id], now)

        written = await self._changes.write(list(by_id), next_state, redelivered=True)
        facts = (fact.at for message in messages for fact in message.facts)
        self._skew.observe(max(facts, default=written.now), written.now)
        for callback in written.changed:
            if not callback.finished:
                self._wake_at(callback.next_at)
        if missing := [id_ for id_ in by_id if id_ not in written.found]:
            # They finished before, but a crash may have prevented their facts. The facts are
            # published again under the same fact_id.
            finished = await self._store.finished(missing)
            await self._correct(finished, by_id, written.now)
            repeated = [
                transition
                for id_, callback in finished.items()
                if (transition := repeated_transition(callback, by_id[id_])) is not None
            ]
            await self._facts.publish(repeated, written.now)
        return [None] * len(messages)

    async def _correct(
        self,
        finished: Mapping[UUID, ScheduledCallback],
        facts: Mapping[UUID, Sequence[Fact]],
        now: datetime,
    ) -> None:
        """Make callbacks notified that failed before their delivery was reported."""
        found = [id_ for id_, each in finished.items() if delivered_late(each, facts[id_])]
        if found:
            notified = [
                replace(finished[id_], status=Status.NOTIFIED)
                for id_ in await self._store.correct(found)
            ]
            await self._facts.report([Transition(each, each.status) for each in notified], now)


def delivered_late(callback: ScheduledCallback, facts: Sequence[Fact]) -> bool:
    """Return whether a callback failed although one of the facts reports its delivery."""
    return callback.status is Status.FAILED and any(
        isinstance(fact, CallbackDelivered)
        and (fact.dispatch is None or fact.dispatch >= callback.first_dispatch)
        for fact in facts
    )


def settle(
    callback: ScheduledCallback, facts: Sequence[Fact], now: datetime
) -> tuple[ScheduledCallback, list[Transition]]:
    """Apply facts to a callback in order; return its new state and the transitions."""
    transitions = []
    for fact in facts:
        callback, transition = _apply(callback, fact, now)
        if transition is not None:
            transitions.append(transition)
        if callback.finished:
            break
    return callback, transitions


def _apply(callback: ScheduledCallback, fact: Fact, now: datetime) -> Step:
    match fact:
        case CallbackDelivered():
            return domain.delivered(callback, fact.dispatch, fact.attempt, now)
        case CallbackAttemptFailed():
            return domain.attempt_failed(
                callback, fact.dispatch, fact.attempt, fact.error, fact.next_at
            )
        case CallbackDispatchFailed():
            return domain.dispatch_failed(
                callback,
                fact.dispatch,
                fact.attempt,
                fact.reason,
                now,
                final=fact.final,
                retry_after=fact.retry_after,
            )
        case _:
            return callback, None


def repeated_transition(callback: ScheduledCallback, facts: Sequence[Fact]) -> Transition | None:
    """Return the transition of a finished callback if one of the facts caused it."""
    for fact in facts:
        delivered = isinstance(fact, CallbackDelivered) and callback.status is Status.NOTIFIED
        dispatch_failed = (
            isinstance(fact, CallbackDispatchFailed)
            and callback.status in (Status.FAILED, Status.CANCELLED)
            and fact.dispatch == callback.dispatch
        )
        if delivered or dispatch_failed:
            return Transition(callback, callback.status, callback.last_error)
    return None


def _scheduled_id(callback_id: str) -> UUID | None:
    try:
        return UUID(callback_id.partition(".")[0])
    except ValueError:
        return None


def report(message: Message, _: Facts | None, outcome: Outcome[None]) -> BaseModel | None:
    """Log dead-lettered facts."""
    if isinstance(outcome, Dead):
        context = {"message_id": message.id, "reason": outcome.reason}
        logger.error("facts dead-lettered", extra=context)
    return None
