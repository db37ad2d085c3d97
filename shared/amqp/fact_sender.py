"""Sends facts: to the service that owns the work, and to observers.

The owner's facts are part of the work, so its messages are acknowledged after these are confirmed.
Observers are everybody else on the exchange `outcomes`. They never stop the work: their facts use
their own connection. Only `send_confirmed` waits for confirms, and not for those that never arrive.
"""

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from prometheus_client import Counter
from pydantic import BaseModel

from shared.amqp.connection import run_until_first_ends
from shared.amqp.facts import batch_messages, fact_messages, owner_messages
from shared.amqp.publisher import (
    OutgoingMessage,
    Publisher,
    PublishUnknownError,
    QueueFullError,
)
from shared.errors import InfrastructureError
from shared.process.health import Health
from shared.topology import EXCHANGES, Topology

logger = logging.getLogger(__name__)

DROPPED: Final = Counter(
    "ringback_fact_messages_dropped", "Messages with facts that an observer missed.", ["reason"]
)
REFUSED: Final = DROPPED.labels("refused")
UNCONFIRMED: Final = DROPPED.labels("unconfirmed")
OVERFLOW: Final = DROPPED.labels("overflow")

# Seconds between two attempts to publish facts, and between two log lines about dropped ones.
RETRY_INTERVAL: Final = 1.0
# Publishes of a message with an unknown result. An observer's queue without a majority never
# confirms, and each publish repeats the facts for all other observers.
MAX_UNKNOWN: Final = 5
# Bytes of facts that wait for a confirm: about 100,000 facts. More are dropped.
MAX_WAITING_BYTES: Final = 32 << 20


@dataclass(slots=True, eq=False)
class _Waiting:
    """A message for observers without a confirm. `unknown` publishes are left."""

    message: OutgoingMessage
    unknown: int = MAX_UNKNOWN
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class FactSender:
    """Sends the facts of a service. `publisher` is for those of owners.

    `run` keeps the connection for observers open. A fact reaches each observer at least once,
    unless the observer's queue refuses or does not confirm it, or the process is killed first.
    """

    def __init__(self, publisher: Publisher, *, url: str, name: str, health: Health) -> None:
        self._publisher = publisher
        self._observers = Publisher(
            url,
            name=f"{name} facts",
            topology=Topology(EXCHANGES, (), ()),
            health=health,
            part="facts",
        )
        self._waiting_bytes = 0
        self._repeats: list[_Waiting] = []
        # Types of facts that a queue does not confirm: nobody waits for them any more.
        self._stalled: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._dropped = 0

    async def run(self) -> None:
        """Publish to observers until cancelled."""
        await run_until_first_ends(self._observers.run(), self._repeat())

    async def send(self, facts: Sequence[BaseModel]) -> None:
        """Publish facts, and return when the owners' are confirmed."""
        self._send_to_observers(fact_messages(facts))
        await self._send_to_owners(list(owner_messages(facts)))

    def send_unconfirmed(self, facts: Sequence[BaseModel]) -> None:
        """Publish facts without owners, and wait for nothing. They are lost if the process dies."""
        self._send_to_observers(fact_messages(facts))

    def send_batch(self, name: str, facts: Sequence[Mapping[str, object]]) -> None:
        """Publish facts of the type `name` that are no models, like `send_unconfirmed`."""
        self._send_to_observers(batch_messages(name, facts))

    async def send_confirmed(self, facts: Sequence[BaseModel]) -> None:
        """Publish facts without owners, and return when each is confirmed, refused or dropped.

        A queue that never confirms delays this once for each type of fact, until the first ones
        are dropped.
        """
        for waiting in self._send_to_observers(fact_messages(facts)):
            if waiting.message.routing_key not in self._stalled:
                await waiting.ended.wait()

    async def drain(self, grace: float) -> None:
        """Wait up to `grace` seconds until observers have all facts."""
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("facts not confirmed at shutdown")

    def _send_to_observers(self, messages: Iterable[OutgoingMessage]) -> list[_Waiting]:
        sent = [_Waiting(message) for message in messages]
        for waiting in sent:
            self._waiting_bytes += len(waiting.message.body)
            self._idle.clear()
            if self._waiting_bytes > MAX_WAITING_BYTES:
                self._end(waiting, OVERFLOW)
            else:
                self._publish(waiting)
        return sent

    async def _send_to_owners(self, messages: list[OutgoingMessage]) -> None:
        while messages:
            results = await asyncio.gather(
                *(self._publisher.publish(message) for message in messages),
                return_exceptions=True,
            )
            errors = [error for error in results if isinstance(error, BaseException)]
            if not errors:
                return
            for error in errors:
                if not isinstance(error, InfrastructureError):
                    raise error
            messages = [m for m, result in zip(messages, results, strict=True) if result]
            logger.warning("publish of facts retried: %s", errors[0])
            jitter = 0.5 + random.random()  # noqa: S311 - not a secret
            await asyncio.sleep(RETRY_INTERVAL * jitter)
            await self._publisher.ready()

    def _publish(self, waiting: _Waiting) -> None:
        confirmed = self._observers.publish(waiting.message)
        confirmed.add_done_callback(partial(self._answered, waiting))

    def _answered(self, waiting: _Waiting, confirmed: asyncio.Future[None]) -> None:
        error = confirmed.exception()
        if error is None:
            self._stalled.discard(waiting.message.routing_key)
            self._end(waiting)
        elif isinstance(error, QueueFullError):
            self._end(waiting, REFUSED)
        elif not isinstance(error, PublishUnknownError):  # not sent
            self._repeats.append(waiting)
        elif waiting.unknown > 1:
            waiting.unknown -= 1
            self._repeats.append(waiting)
        else:
            self._stalled.add(waiting.message.routing_key)
            self._end(waiting, UNCONFIRMED)

    def _end(self, waiting: _Waiting, dropped: Counter | None = None) -> None:
        waiting.ended.set()
        self._waiting_bytes -= len(waiting.message.body)
        if dropped is not None:
            dropped.inc()
            self._dropped += 1
        if self._waiting_bytes == 0:
            self._idle.set()

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(RETRY_INTERVAL)
            if self._dropped:
                logger.warning("facts dropped for observers", extra={"messages": self._dropped})
                self._dropped = 0
            await self._observers.ready()
            repeats, self._repeats = self._repeats, []
            for waiting in repeats:
                self._publish(waiting)
