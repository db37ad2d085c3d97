"""Publishes the commands in the outbox: each at least once, under the same id every time."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from services.ingestion import metrics
from services.ingestion.domain import Kind
from services.ingestion.store import Pending, Store
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.contracts import headers
from shared.contracts.callback import SEND_CALLBACK
from shared.contracts.postings import POSTING
from shared.contracts.schedules import SCHEDULE_CALLBACK
from shared.contracts.user_events import USER_EVENT
from shared.errors import InfrastructureError
from shared.topology import (
    CALLBACKS,
    POSTING_KEY,
    POSTINGS,
    SCHEDULE,
    SCHEDULES,
    USER_EVENT_KEY,
    USER_EVENTS,
)

logger = logging.getLogger(__name__)

# Message type, exchange and routing key of each kind of command.
ROUTES: Final[Mapping[Kind, tuple[str, str, str]]] = {
    Kind.POSTING: (POSTING, POSTINGS, POSTING_KEY),
    Kind.SCHEDULE: (SCHEDULE_CALLBACK, SCHEDULES, SCHEDULE),
    Kind.CALLBACK: (SEND_CALLBACK, "", CALLBACKS),
    Kind.USER_EVENT: (USER_EVENT, USER_EVENTS, USER_EVENT_KEY),
}
# Seconds: longer than a publish and its settling ever take (5 s for a confirm, 4.5 s for a
# statement), and short enough that what a dead process held goes out within 30 s.
LEASE: Final = 15.0
# Seconds between two looks for what others have left.
POLL: Final = 2.0
# Seconds until what the broker did not take is tried again.
AGAIN: Final = 1.0
# Commands held in memory between their commit and their publishing, in batches.
MOST_HELD: Final = 10


class Outbox:
    """What is committed is handed over by `take`; what others left behind is found by polling."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        *,
        batch: int,
        steady: Callable[[], float],
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._batch = batch
        self._steady = steady
        self._held: deque[tuple[float, Pending]] = deque()
        self._some = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._look_at = 0.0

    def lease(self) -> float:
        """Seconds for which commands about to be committed are ours; 0 when there is no room."""
        return LEASE if len(self._held) < MOST_HELD * self._batch else 0.0

    def take(self, commands: Sequence[Pending], leased: float) -> None:
        """Publish these, leased for so many seconds when their commit was asked for."""
        if leased and commands:
            # Half of the lease is for publishing: what is not begun by then is somebody else's.
            until = self._steady() + leased / 2
            self._held.extend((until, command) for command in commands)
            self._empty.clear()
        self._some.set()

    async def drain(self, grace: float) -> None:
        """Wait until what is held is published, at most `grace` seconds."""
        async with asyncio.timeout(grace):
            await self._empty.wait()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                await self._publisher.ready()
                if await self.run_once():
                    continue
            except InfrastructureError as error:
                logger.warning("the outbox waits: %s", error)
                await asyncio.sleep(AGAIN)
                continue
            try:
                async with asyncio.timeout(max(self._look_at - self._steady(), 0.0)):
                    await self._some.wait()
            except TimeoutError:
                pass

    async def run_once(self) -> int:
        """Publish a batch of what is held and, now and then, one of what was left; how many."""
        self._some.clear()
        batch: list[Pending] = []
        if self._steady() >= self._look_at:
            batch = await self._store.claim(self._batch, lease=LEASE)
            # A full batch: there is more.
            self._look_at = self._steady() + (POLL if len(batch) < self._batch else 0.0)
        while self._held and len(batch) < 2 * self._batch:
            until, command = self._held.popleft()
            if self._steady() < until:
                batch.append(command)
        if batch:
            await self._publish(batch)
        if not self._held:
            self._empty.set()
        return len(batch)

    async def _publish(self, batch: Sequence[Pending]) -> None:
        results = await asyncio.gather(
            *(self._publisher.publish(message(each)) for each in batch), return_exceptions=True
        )
        sent, refused = [], []
        reason: BaseException | None = None
        for each, result in zip(batch, results, strict=True):
            if result is None:
                sent.append(each.command.id)
                metrics.PUBLISHED[each.command.kind].inc()
            else:
                refused.append(each.command.id)
                metrics.UNPUBLISHED[each.command.kind].inc()
                reason = result
        if sent:
            await self._store.delete(sent)
        if refused:
            logger.warning("%d commands wait in the outbox: %s", len(refused), reason)
            await self._store.release(refused, after=AGAIN)


def message(pending: Pending) -> OutgoingMessage:
    """The message for a command, with a fresh message_id and the command's own id."""
    kind, exchange, routing_key = ROUTES[pending.command.kind]
    ours = {headers.ID: str(pending.command.id)}
    if pending.traceparent is not None:
        ours[headers.TRACEPARENT] = pending.traceparent
    return OutgoingMessage(
        routing_key,
        Properties(
            content_type="application/json",
            headers=ours,
            delivery_mode=PERSISTENT,
            message_id=new_id(),
            timestamp=int(pending.created_at),
            type=kind,
            app_id="ringback",
        ),
        pending.command.body,
        exchange=exchange,
    )
