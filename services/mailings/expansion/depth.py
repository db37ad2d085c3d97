"""Measures how many messages wait for delivery, so that expansion pauses while a queue is full."""

import asyncio
from collections.abc import Callable
from typing import Final

from aiormq.abc import AbstractChannel

from services.mailings import metrics
from shared.amqp.connection import (
    CONNECTION_ERRORS,
    BrokerConnection,
    is_cancelled,
    keep_connected,
    wait_until_lost,
)
from shared.amqp.declare import declare
from shared.errors import InfrastructureError
from shared.process.health import Health
from shared.topology import Topology, tier_queue, tiers_of

# Seconds for which a count is reused: 1,000 messages at 5,000 a second.
COUNT_LIFETIME: Final = 0.2
# Seconds for a response of the broker.
BROKER_TIMEOUT: Final = 5.0


class QueueDepthUnknownError(InfrastructureError):
    """The broker does not report the depth of a queue."""


class QueueDepth:
    """Counts the messages in work queues and their tiers, on a connection of its own.

    A queue is full when it and its tiers contain `max_waiting` messages.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        url: str,
        *,
        name: str,
        topology: Topology,
        health: Health,
        max_waiting: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._url = url
        self._name = name
        self._topology = topology
        self._health = health
        self._max_waiting = max_waiting
        self._monotonic = monotonic
        self._channel: AbstractChannel | None = None
        self._counts: dict[str, tuple[float, int]] = {}
        self._lock = asyncio.Lock()
        health.expect("depths")

    async def run(self) -> None:
        """Keep the connection open until cancelled."""
        await keep_connected(
            self._url, name=self._name, part="depths", health=self._health, session=self._serve
        )

    async def is_full(self, queue: str) -> bool:
        """Return whether a work queue and its tiers contain the maximum of messages.

        Raises:
            QueueDepthUnknownError: the broker does not respond.
        """
        async with self._lock:
            at, count = self._counts.get(queue, (float("-inf"), 0))
            if self._monotonic() - at >= COUNT_LIFETIME:
                count = await self._count(queue)
                self._counts[queue] = self._monotonic(), count
        full = count >= self._max_waiting
        metrics.BACKPRESSURE.labels(queue).set(full)
        return full

    async def _count(self, queue: str) -> int:
        if self._channel is None:
            raise QueueDepthUnknownError("not connected to the broker")
        count = 0
        try:
            async with asyncio.timeout(BROKER_TIMEOUT):
                for name in (queue, *(tier_queue(queue, tier) for tier in tiers_of(queue))):
                    found = await self._channel.queue_declare(name, passive=True)
                    count += found.message_count or 0
        except CONNECTION_ERRORS as error:
            raise QueueDepthUnknownError(f"the depth of {queue} is unknown: {error}") from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise QueueDepthUnknownError("the broker does not respond") from None
        return count

    async def _serve(self, broker: BrokerConnection) -> None:
        await declare(broker.connection, self._topology)  # a missing queue would close the channel
        self._channel, _ = await broker.channel(confirms=False)
        self._health.up("depths")
        try:
            await wait_until_lost(self._channel)
        finally:
            self._channel = None
