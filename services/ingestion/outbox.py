"""Publishes the commands of the outbox at least once, with the same id every time."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from services.ingestion import metrics
from services.ingestion.domain import MESSAGE_TYPE_OF
from services.ingestion.store import PendingCommand, Store
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.contracts import headers
from shared.contracts.message_types import MessageType
from shared.errors import InfrastructureError

logger = logging.getLogger(__name__)

# Seconds. Longer than the timeouts of a publish (5 s) and of the statement after it (4.5 s), and
# short enough that the commands of a dead process are published within 30 s.
LEASE: Final = 15.0
# Seconds between two searches for expired leases.
POLL_INTERVAL: Final = 2.0
# Seconds until a command that the broker did not confirm is published again.
RETRY_DELAY: Final = 1.0
# Batches of commands held in memory between their commit and their publication.
MAX_HELD_BATCHES: Final = 10


class Outbox:
    """Publishes committed commands: those added by `add`, and those whose lease has expired."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        *,
        batch: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._batch = batch
        self._monotonic = monotonic
        self._held: deque[tuple[float, PendingCommand]] = deque()
        self._added = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._next_poll = 0.0

    def available_lease(self) -> float:
        """Return the lease in seconds for commands about to be committed; 0 if memory is full."""
        return LEASE if len(self._held) < MAX_HELD_BATCHES * self._batch else 0.0

    def add(self, commands: Sequence[PendingCommand], lease: float) -> None:
        """Publish these committed commands, which have a lease of `lease` seconds."""
        if lease and commands:
            # Half of the lease is for the publish. If a command has not been started by then,
            # another process claims and publishes it when the lease expires.
            until = self._monotonic() + lease / 2
            self._held.extend((until, command) for command in commands)
            self._empty.clear()
        self._added.set()

    async def drain(self, grace: float) -> None:
        """Wait until the held commands are published, at most `grace` seconds."""
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
                logger.warning("outbox paused: %s", error)
                await asyncio.sleep(RETRY_DELAY)
                continue
            try:
                async with asyncio.timeout(max(self._next_poll - self._monotonic(), 0.0)):
                    await self._added.wait()
            except TimeoutError:
                pass

    async def run_once(self) -> int:
        """Publish a batch of held and of claimed commands, and return the number of commands."""
        self._added.clear()
        batch: list[PendingCommand] = []
        if self._monotonic() >= self._next_poll:
            batch = await self._store.claim(self._batch, lease=LEASE)
            # After a full batch, search again at once.
            self._next_poll = self._monotonic() + (
                POLL_INTERVAL if len(batch) < self._batch else 0.0
            )
        while self._held and len(batch) < 2 * self._batch:
            until, command = self._held.popleft()
            if self._monotonic() < until:
                batch.append(command)
        if batch:
            await self._publish(batch)
        if not self._held:
            self._empty.set()
        return len(batch)

    async def _publish(self, batch: Sequence[PendingCommand]) -> None:
        results = await asyncio.gather(
            *(self._publisher.publish(command_message(pending)) for pending in batch),
            return_exceptions=True,
        )
        confirmed, failed = [], []
        reason: BaseException | None = None
        for pending, result in zip(batch, results, strict=True):
            if result is None:
                confirmed.append(pending.command.id)
                metrics.PUBLISHED[pending.command.kind].inc()
            else:
                failed.append(pending.command.id)
                metrics.UNPUBLISHED[pending.command.kind].inc()
                reason = result
        if confirmed:
            await self._store.delete(confirmed)
        if failed:
            logger.warning("%d commands not confirmed, retry scheduled: %s", len(failed), reason)
            await self._store.release(failed, after=RETRY_DELAY)


def command_message(pending: PendingCommand) -> OutgoingMessage:
    """Build the message of a command, with a new message_id and the command's own id."""
    message_type = MESSAGE_TYPE_OF[pending.command.kind]
    message_headers = {headers.ID: str(pending.command.id)}
    if pending.traceparent is not None:
        message_headers[headers.TRACEPARENT] = pending.traceparent
    return OutgoingMessage(
        _routing_key(message_type, pending.command.body),
        Properties(
            content_type="application/json",
            headers=message_headers,
            delivery_mode=PERSISTENT,
            message_id=new_id(),
            timestamp=int(pending.created_at),
            type=message_type.name,
            app_id=headers.APP_ID,
        ),
        pending.command.body,
        exchange=message_type.exchange,
    )


def _routing_key(message_type: MessageType, body: bytes) -> str:
    """Return the routing key of a command.

    Its body was valid when it was stored, for this version or a newer one with more fields.
    """
    if not message_type.routing_fields:
        return message_type.routing_key
    command = message_type.model.model_validate_json(body, extra="ignore")
    return message_type.routing_key_of(command)
