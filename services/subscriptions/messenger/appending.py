"""Appends user events in batches, and wakes those who wait for them."""

from collections.abc import Callable, Collection
from typing import Final

from services.subscriptions import metrics
from services.subscriptions.messenger.domain import Appended, NewEvent, Outcome
from services.subscriptions.messenger.store import Messenger
from shared.resilience.batching import Batcher

_COUNTERS: Final = {
    Outcome.APPENDED: metrics.APPENDED,
    Outcome.REPEATED: metrics.REPEATED,
    Outcome.UNKNOWN_USER: metrics.UNKNOWN_USER,
}


class Appender:
    """Appends user events. After a commit, `appended` gets the ids of users with new ones."""

    def __init__(
        self,
        messenger: Messenger,
        appended: Callable[[Collection[int]], None],
        *,
        batch: int,
    ) -> None:
        self._messenger = messenger
        self._appended = appended
        self._batches: Batcher[NewEvent, Appended] = Batcher(self._append, max_size=batch)

    async def run(self) -> None:
        """Append batches until cancelled."""
        await self._batches.run()

    async def append(self, event: NewEvent) -> Appended:
        """Append an event. It is committed on return. A repeat changes nothing.

        Raises:
            StoreConnectionLostError: the effect is unknown; repeat it with the same id.
        """
        return await self._batches.add(event)

    async def _append(self, events: list[NewEvent]) -> list[Appended]:
        first = {_key(event): event for event in reversed(events)}
        distinct = [event for event in events if first[_key(event)] is event]
        appended = await self._messenger.append(distinct)
        results = dict(zip(map(_key, distinct), appended, strict=True))
        new = {user_id for (user_id, _), result in results.items() if result.is_new}
        if new:
            self._appended(new)
        found = [
            results[_key(event)] if first[_key(event)] is event else results[_key(event)].repeated()
            for event in events
        ]
        for result in found:
            _COUNTERS[result.outcome].inc()
        return found


def _key(event: NewEvent) -> tuple[int, str]:
    return event.user_id, event.event_id
