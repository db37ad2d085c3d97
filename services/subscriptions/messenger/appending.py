"""Appends user events in batches, and reports the users who have new ones."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from services.subscriptions import metrics
from services.subscriptions.messenger.domain import AppendResult, NewEvent, Outcome
from services.subscriptions.messenger.store import Messenger
from shared.resilience.batching import Batcher

# Characters of the events of one transaction, which takes about 100 ms. 500 events of the largest
# size would exceed the timeout of a statement on each retry.
MAX_BYTES: Final = 4 << 20
# The consumer counts events for unknown users when it dead-letters them.
_COUNTERS: Final = {Outcome.APPENDED: metrics.APPENDED, Outcome.REPEATED: metrics.REPEATED}


class Appender:
    """Appends user events. After a commit, `appended` gets the ids of their users.

    It also gets those of repeats, because the process that committed the event may have died before
    it reported the user.
    """

    def __init__(
        self,
        messenger: Messenger,
        appended: Callable[[Collection[int]], None],
        *,
        batch: int,
    ) -> None:
        self._messenger = messenger
        self._appended = appended
        self._batches: Batcher[NewEvent, AppendResult] = Batcher(self._append, max_size=batch)

    async def run(self) -> None:
        """Append batches until cancelled."""
        await self._batches.run()

    async def append(self, event: NewEvent) -> AppendResult:
        """Append an event. It is committed on return. A repeat changes nothing.

        Raises:
            StoreConnectionLostError: the effect is unknown; repeat it with the same id.
        """
        return await self._batches.add(event)

    async def _append(self, events: list[NewEvent]) -> list[AppendResult]:
        first = {_key(event): event for event in reversed(events)}
        distinct = [event for event in events if first[_key(event)] is event]
        results: dict[tuple[int, str], AppendResult] = {}
        for part in _parts(distinct):
            appended = await self._messenger.append(part)
            results |= zip(map(_key, part), appended, strict=True)
            if known := {
                event.user_id
                for event, result in zip(part, appended, strict=True)
                if result.outcome is not Outcome.UNKNOWN_USER
            }:
                self._appended(known)
        found = [
            results[_key(event)] if first[_key(event)] is event else results[_key(event)].repeated()
            for event in events
        ]
        for result in found:
            if result.outcome in _COUNTERS:
                _COUNTERS[result.outcome].inc()
        return found


def _parts(events: Sequence[NewEvent]) -> Iterator[list[NewEvent]]:
    """Yield the events in parts of at most MAX_BYTES, or of one event."""
    part: list[NewEvent] = []
    size = 0
    for event in events:
        size += event.size
        if part and size > MAX_BYTES:
            yield part
            part, size = [], event.size
        part.append(event)
    if part:
        yield part


def _key(event: NewEvent) -> tuple[int, str]:
    return event.user_id, event.event_id
