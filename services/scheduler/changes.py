"""Writes new states of callbacks, and reports their transitions. A crash loses no fact."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

from services.scheduler.domain import ScheduledCallback, Transition
from services.scheduler.facts import FactPublisher, fact
from services.scheduler.records import StoredFacts
from services.scheduler.store import Store
from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

NextState = Callable[[ScheduledCallback, datetime], tuple[ScheduledCallback, Sequence[Transition]]]

# Seconds between two searches for facts of crashed processes.
INTERVAL: Final = 5.0


@dataclass(frozen=True, slots=True)
class Written:
    """The result of a write at the time `now`.

    found: the new states of all callbacks that had not finished; changed: those that are different.
    """

    found: Mapping[UUID, ScheduledCallback]
    changed: Sequence[ScheduledCallback]
    now: datetime


class ChangeWriter:
    """Writes new states and reports their transitions.

    Facts are stored with the change and deleted when they are confirmed. `run` publishes those of
    crashed processes.
    """

    def __init__(self, store: Store, facts: FactPublisher) -> None:
        self._store = store
        self._facts = facts

    async def write(
        self, ids: Sequence[UUID], next_state: NextState, *, redelivered: bool = False
    ) -> Written:
        """Lock unfinished callbacks, and write and report what `next_state` returns for each.

        redelivered: whether the cause of the change is delivered again after a crash. The fact
        about a final status is then not stored, because it can be derived again.
        """
        found: dict[UUID, ScheduledCallback] = {}
        changed: list[ScheduledCallback] = []
        transitions: list[Transition] = []
        stored: StoredFacts | None = None

        def decide(
            callbacks: Mapping[UUID, ScheduledCallback], now: datetime
        ) -> list[ScheduledCallback]:
            changed.clear()
            transitions.clear()
            for callback in callbacks.values():
                after, its_transitions = next_state(callback, now)
                found[callback.id] = after
                transitions.extend(its_transitions)
                if after is not callback:
                    changed.append(after)
            return changed

        def outbox(now: datetime) -> StoredFacts | None:
            nonlocal stored
            facts = [
                fact(each, now).model_dump_json()
                for each in transitions
                if not (redelivered and _is_last(each, found[each.callback.id]))
            ]
            stored = StoredFacts(uuid4(), facts) if facts else None
            return stored

        now = await self._store.update(ids, decide, outbox)
        await self._facts.report(transitions, now)
        if stored is not None:
            with suppress(StoreConnectionLostError):  # `run` publishes them again
                await self._store.delete_facts(stored.id)
        return Written(found, changed, now)

    async def run(self) -> None:
        """Publish the facts of crashed processes until cancelled."""
        while True:
            try:
                await self.run_once()
            except StoreConnectionLostError as error:
                logger.warning("Cannot read stored facts: %s. Retrying in %.0f s.", error, INTERVAL)
            await asyncio.sleep(INTERVAL)

    async def run_once(self) -> None:
        """Publish the facts that a crashed process has stored."""
        while (stored := await self._store.claim_facts()) is not None:
            await self._facts.publish_json(stored.facts)
            await self._store.delete_facts(stored.id)


def _is_last(transition: Transition, callback: ScheduledCallback) -> bool:
    """Return whether a transition led to the final status. An occurrence can have another one."""
    return callback.finished and transition.status is callback.status
