"""Claims: of several delivery processes, only one sends a message, and none sends it again.

A process registers itself in the database and stays alive by renewing its registration. It claims
each message before it sends it, and records it as sent afterwards. If it dies in between, its
claims are void after LEASE seconds, and another process sends the message again.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

# A UUID in C. Each is hashed and compared several times.
from asyncpg.pgproto.pgproto import UUID

from services.delivery.store import Store
from shared.errors import DeferredError, InfrastructureError
from shared.resilience.batching import Batcher

logger = logging.getLogger(__name__)

# Seconds after which the messages of a killed process can be sent by another one. A process that is
# suspended for longer can repeat the messages that it was sending.
LEASE: Final = 10.0
RENEW_INTERVAL: Final = 3.0
# Messages in one statement.
BATCH_SIZE: Final = 500
# Seconds from one statement to the next, so that it has more messages. Without these intervals, an
# e-mail costs 9 % more CPU, and half as much again in PostgreSQL (measured at 1,200 e-mails per
# second on a 2-core machine). The second is shorter, because a place can wait for a record.
CLAIM_INTERVAL: Final = 0.02
RECORD_INTERVAL: Final = 0.004
# Seconds that a copy is deferred while another process sends the message.
COPY_DELAY: Final = 1.0
# Seconds between two deletions of old ids, and ids deleted in one statement.
DELETE_INTERVAL: Final = 60.0
DELETE_BATCH: Final = 5_000


@dataclass(frozen=True, slots=True)
class Claim:
    """A message that this process may send. It is valid while the process keeps its number.

    sent: seconds of the attempt that has sent it before; then it must not be sent again.
    """

    id: UUID
    process: int
    sent: float | None = None


def claim_id(channel: str, message_id: str) -> UUID:
    """Return the id under which a message is claimed."""
    return UUID(sha256(f"{channel} {message_id}".encode()).digest()[:16])


class Claims:
    """The claims of this process.

    providers: those that this process sends to.
    retention: seconds for which sent ids are kept.
    observe: called with the number of live processes of each provider after each renewal.
    """

    def __init__(
        self,
        store: Store,
        providers: Sequence[str],
        *,
        retention: float,
        monotonic: Callable[[], float],
        observe: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._store = store
        self._providers = providers
        self._retention = retention
        self._monotonic = monotonic
        self._observe = observe
        self._process = 0  # not registered
        self._registered = asyncio.Event()
        self._valid_until = 0.0
        self._closed = False
        self._claiming: Batcher[UUID, Claim | None] = Batcher(
            self._claim, max_size=BATCH_SIZE, interval=CLAIM_INTERVAL
        )
        self._recording: Batcher[UUID, None] = Batcher(
            self._record, max_size=BATCH_SIZE, interval=RECORD_INTERVAL
        )
        # Not yet in the database: sent messages, and claims that are given up.
        self._sent: dict[UUID, tuple[float, Callable[[], None]]] = {}
        self._released: set[UUID] = set()
        self._release_now = asyncio.Event()
        # Held by each statement that claims or releases: a late release would remove a newer claim.
        self._in_order = asyncio.Lock()

    async def run(self) -> None:
        """Keep the process registered until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claiming.run())
            group.create_task(self._recording.run())
            group.create_task(self._release_claims())
            group.create_task(self._keep_registered())
            group.create_task(self._delete_old())

    async def claim(self, id_: UUID) -> Claim:
        """Claim a message.

        Raises:
            DeferredError: another process is sending it.
            StoreConnectionLostError: the database is unavailable.
        """
        if id_ in self._sent:
            await self._recording.add(id_)
        self._released.discard(id_)
        claim = await self._claiming.add(id_)
        if claim is None:
            raise DeferredError("another process is sending the message", delay=COPY_DELAY)
        return claim

    def check(self, claim: Claim) -> None:
        """Check that no other process can have taken over a claim.

        Raises:
            InfrastructureError: the registration of this process has expired.
        """
        if claim.process != self._process or self._monotonic() >= self._valid_until:
            raise InfrastructureError("the claim of the message has expired")

    async def record(self, claim: Claim, duration: float, recorded: Callable[[], None]) -> None:
        """Record a message as sent, then call `recorded`.

        If the database is unavailable, this is repeated until it succeeds.

        Raises:
            StoreConnectionLostError: the database is unavailable.
        """
        self._sent[claim.id] = duration, recorded
        await self._recording.add(claim.id)

    def release(self, claim: Claim) -> None:
        """Give up the claim of a message, so that any process can send it, unless it was sent."""
        if claim.id in self._sent:
            return
        self._released.add(claim.id)
        self._release_now.set()

    async def close(self) -> None:
        """Record what is sent, and give up all claims, for good."""
        self._closed = True
        process, self._process = self._process, 0
        try:
            await self._record([])
            await self._store.unregister(process)
        except InfrastructureError as error:
            logger.warning("claims not given up: %s", error)

    async def renew(self) -> None:
        """Renew the registration, or register again if it has expired."""
        renewed_at = self._monotonic()
        if not self._process or not await self._store.renew(self._process, LEASE):
            self._process = await self._store.register(self._providers, LEASE)
        self._valid_until = renewed_at + LEASE
        self._registered.set()
        self._observe(await self._store.alive())

    async def _claim(self, ids: list[UUID]) -> list[Claim | None]:
        await self._registered.wait()
        process = self._process
        if not process:
            raise InfrastructureError("stopping")
        async with self._in_order:
            others = await self._store.claim(process, ids)
        return [
            None if id_ in others and others[id_] is None else Claim(id_, process, others.get(id_))
            for id_ in ids
        ]

    async def _record(self, batch: list[UUID]) -> list[None]:
        """Record all sent messages, not only those of the batch."""
        sent = dict(self._sent)
        if sent:
            await self._store.record({id_: duration for id_, (duration, _) in sent.items()})
        for id_, (_, recorded) in sent.items():
            if self._sent.pop(id_, None):
                recorded()
        return [None] * len(batch)

    async def _release_claims(self) -> None:
        while True:
            await self._release_now.wait()
            self._release_now.clear()
            try:
                async with self._in_order:
                    released = list(self._released)
                    await self._store.release(self._process, released)
                self._released.difference_update(released)
            except InfrastructureError as error:
                logger.warning("claims not given up: %s", error)
                await asyncio.sleep(RENEW_INTERVAL)
                self._release_now.set()

    async def _keep_registered(self) -> None:
        while True:
            try:
                if not self._closed:
                    await self.renew()
                await self._record([])  # what could not be recorded before
            except InfrastructureError as error:
                logger.warning("registration not renewed: %s", error)
            await asyncio.sleep(RENEW_INTERVAL)

    async def _delete_old(self) -> None:
        while True:
            try:
                while await self._store.delete_old(self._retention, DELETE_BATCH) == DELETE_BATCH:
                    pass
            except InfrastructureError as error:
                logger.warning("old ids not deleted: %s", error)
            await asyncio.sleep(DELETE_INTERVAL)
