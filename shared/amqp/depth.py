"""Counts the messages that wait in queues."""

import asyncio
from collections.abc import Iterable
from typing import Final, NamedTuple

from aiormq.abc import AbstractChannel

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
from shared.topology import Topology

# Seconds for a response of the broker.
BROKER_TIMEOUT: Final = 5.0


class QueueDepthUnknownError(InfrastructureError):
    """The broker does not report the depth of a queue."""


class QueueState(NamedTuple):
    """A queue: the messages that no consumer has received, and the consumers."""

    messages: int
    consumers: int


class QueueDepth:
    """Counts messages on a connection of its own, because an alarm stops those that publish."""

    def __init__(self, url: str, *, name: str, topology: Topology, health: Health) -> None:
        self._url = url
        self._name = name
        self._topology = topology
        self._health = health
        self._channel: AbstractChannel | None = None
        health.expect("depths")

    async def run(self) -> None:
        """Keep the connection open until cancelled."""
        await keep_connected(
            self._url, name=self._name, part="depths", health=self._health, session=self._serve
        )

    async def count(self, queues: Iterable[str]) -> int:
        """Return the number of messages in queues that no consumer has received.

        Raises:
            QueueDepthUnknownError: the broker does not respond.
        """
        return sum(state.messages for state in (await self.states(queues)).values())

    async def states(self, queues: Iterable[str]) -> dict[str, QueueState]:
        """Return the state of each of these queues.

        Raises:
            QueueDepthUnknownError: the broker does not respond.
        """
        if self._channel is None:
            raise QueueDepthUnknownError("not connected to the broker")
        states = {}
        try:
            async with asyncio.timeout(BROKER_TIMEOUT):
                for name in queues:
                    found = await self._channel.queue_declare(name, passive=True)
                    states[name] = QueueState(found.message_count or 0, found.consumer_count or 0)
        except CONNECTION_ERRORS as error:
            raise QueueDepthUnknownError(f"the depth of {name} is unknown: {error}") from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise QueueDepthUnknownError("the broker does not respond") from None
        return states

    async def _serve(self, broker: BrokerConnection) -> None:
        await declare(broker.connection, self._topology)  # a missing queue would close the channel
        self._channel, _ = await broker.channel(confirms=False)
        self._health.up("depths")
        try:
            await wait_until_lost(self._channel)
        finally:
            self._channel = None
