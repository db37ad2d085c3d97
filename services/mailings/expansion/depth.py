"""How much waits for delivery: what tells expansion to hold back."""

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
from shared.topology import TIERS, Topology, tier_queue

# Seconds for which a count is good: 1,000 messages at 5,000 a second.
FRESH: Final = 0.2
# Seconds for an answer of the broker.
PATIENCE: Final = 5.0


class QueueDepthUnknownError(InfrastructureError):
    """The broker does not say how much waits."""


class QueueDepth:
    """Counts what lies in work queues and their tiers, on a connection of its own."""

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        url: str,
        *,
        name: str,
        topology: Topology,
        health: Health,
        most: int,
        steady: Callable[[], float],
    ) -> None:
        self._url = url
        self._name = name
        self._topology = topology
        self._health = health
        self._most = most
        self._steady = steady
        self._channel: AbstractChannel | None = None
        self._counted: dict[str, tuple[float, int]] = {}
        self._one = asyncio.Lock()
        health.expect("depths")

    async def run(self) -> None:
        """Keep the connection open until cancelled."""
        await keep_connected(
            self._url, name=self._name, part="depths", health=self._health, session=self._count_on
        )

    async def too_many(self, queue: str) -> bool:
        """Whether more than the most wait in a work queue and its tiers.

        Raises:
            QueueDepthUnknownError: the broker does not say.
        """
        async with self._one:
            at, count = self._counted.get(queue, (float("-inf"), 0))
            if self._steady() - at >= FRESH:
                count = await self._count(queue)
                self._counted[queue] = self._steady(), count
        full = count >= self._most
        metrics.HELD_BACK.labels(queue).set(full)
        return full

    async def _count(self, queue: str) -> int:
        if self._channel is None:
            raise QueueDepthUnknownError("not connected to the broker")
        count = 0
        try:
            async with asyncio.timeout(PATIENCE):
                for name in (queue, *(tier_queue(queue, tier) for tier in TIERS)):
                    found = await self._channel.queue_declare(name, passive=True)
                    count += found.message_count or 0
        except CONNECTION_ERRORS as error:
            raise QueueDepthUnknownError(f"the depth of {queue} is unknown: {error}") from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise QueueDepthUnknownError("the broker shows no sign of life") from None
        return count

    async def _count_on(self, link: BrokerConnection) -> None:
        await declare(link.connection, self._topology)  # a queue that is missing ends the channel
        self._channel, _ = await link.channel(confirms=False)
        self._health.up("depths")
        try:
            await wait_until_lost(self._channel)
        finally:
            self._channel = None
