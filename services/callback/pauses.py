"""Targets that operators have paused: their callbacks are deferred until the target is resumed.

The journal publishes the whole list to the stream `controls`. Its last message is valid.
"""

import asyncio
import logging
from functools import partial
from typing import Final

from pydantic import ValidationError

from services.callback import metrics
from shared.amqp.connection import BrokerConnection, keep_connected
from shared.amqp.declare import declare
from shared.amqp.stream import StreamMessage, open_stream
from shared.clock import Clock
from shared.contracts.controls import PAUSED_TARGETS, PausedTargets
from shared.errors import DeferredError
from shared.process.health import Health
from shared.resilience.lanes import deferral_delay
from shared.topology import CONTROLS, Topology

logger = logging.getLogger(__name__)

PART: Final = "controls"
PREFETCH: Final = 10
# Seconds to wait for the list before callbacks are sent without it. A broker that works takes 5 ms.
READ_TIMEOUT: Final = 5.0
# Seconds after which a stream that the broker reports as empty has no list.
EMPTY_TIMEOUT: Final = 0.5
# Seconds by which the clock of the journal's database may be ahead. Versions are its times, in
# microseconds.
VERSIONS_PER_SECOND: Final = 1_000_000
MAX_AHEAD: Final = 3600.0


class Pauses:
    """The paused targets, as the last list says."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._targets: frozenset[str] = frozenset()
        self._version = 0

    def check(self, target: str, deferrals: int) -> None:
        """Check that a target is not paused. The time of a pause does not age a callback.

        Raises:
            DeferredError: it is paused.
        """
        if target in self._targets:
            delay = deferral_delay(deferrals)
            raise DeferredError("the target is paused", delay=delay, ages=False)

    def apply(self, paused: PausedTargets) -> bool:
        """Replace the list, unless this one is older: several processes publish it.

        Return False if its version is not valid. It would outdate all lists that follow.
        """
        if paused.version > (self._clock.now() + MAX_AHEAD) * VERSIONS_PER_SECOND:
            logger.warning("list of paused targets ignored: its version is in the future")
            return False
        if paused.version < self._version:
            return True
        self._version = paused.version
        targets = frozenset(paused.targets)
        for target in targets - self._targets:
            logger.warning("target paused", extra={"target_url": target})
        for target in self._targets - targets:
            logger.warning("target resumed", extra={"target_url": target})
        self._targets = targets
        return True


class PauseFollower:
    """Follows the stream `controls` on its own connection, and applies each list."""

    def __init__(
        self, pauses: Pauses, *, url: str, name: str, topology: Topology, health: Health
    ) -> None:
        self._pauses = pauses
        self._keep_connected = partial(keep_connected, url, name=name, part=PART, health=health)
        self._topology = topology
        self._health = health
        self._read = asyncio.Event()
        health.expect(PART)

    async def run(self) -> None:
        """Follow the stream until cancelled.

        Raises:
            TopologyMismatchError: the stream on the broker differs from the topology.
        """
        await self._keep_connected(session=self._follow)

    async def ready(self) -> None:
        """Wait until the last list is applied, but at most READ_TIMEOUT."""
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                await self._read.wait()
        except TimeoutError:
            logger.warning("paused targets not read; callbacks are sent to all targets")

    async def _follow(self, broker: BrokerConnection) -> None:
        self._read.clear()
        await declare(broker.connection, self._topology)
        stream = await open_stream(broker, CONTROLS)

        def receive(message: StreamMessage) -> None:
            stream.acknowledge(message.tag)
            if message.properties.type == PAUSED_TARGETS:
                self._apply(message.body)

        await stream.start("last", receive, prefetch=PREFETCH)
        self._health.up(PART)
        try:
            async with asyncio.timeout(EMPTY_TIMEOUT):
                await self._read.wait()
        except TimeoutError:
            if not await stream.count():
                logger.warning("no list of paused targets: no journal has published one")
                self._read.set()
        await stream.run()

    def _apply(self, body: bytes) -> None:
        try:
            valid = self._pauses.apply(PausedTargets.model_validate_json(body))
        except ValidationError as error:
            logger.warning("list of paused targets not valid: %s", error.errors()[0]["msg"])
            return
        if valid:
            metrics.PAUSES_KNOWN.set(1)
            self._read.set()
