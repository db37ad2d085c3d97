"""Receives the ids of users with new events from the service subscriptions.

Each gateway process has its own queue, which is deleted with its connection. Wakes that are
published meanwhile are lost. So all polls and streams read once after the process has reconnected.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from pydantic import ValidationError

from services.gateway.polls.waiters import Waiters
from shared.amqp.connection import BrokerConnection, keep_connected
from shared.amqp.declare import declare
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.subscription import subscribe
from shared.contracts.user_events import UserEventsWake
from shared.process.health import Health
from shared.topology import USER_EVENTS_WAKE, Topology

logger = logging.getLogger(__name__)

PART: Final = "user events"
# Milliseconds. By then, all polls have ended, and all streams have read again. It bounds the queue
# of a process that does not consume.
MAX_AGE: Final = 60_000


class WakeReceiver:
    """Wakes the waiters of this process. `ready` returns when they can read."""

    def __init__(  # noqa: PLR0913 - the composition root passes each collaborator by name
        self,
        waiters: Waiters,
        *,
        url: str,
        name: str,
        topology: Topology,
        ready: Callable[[], Awaitable[None]],
        health: Health,
    ) -> None:
        self._waiters = waiters
        self._topology = topology
        self._ready = ready
        self._health = health
        self._keep_connected = partial(keep_connected, url, name=name, part=PART, health=health)
        health.expect(PART)

    async def run(self) -> None:
        """Receive until cancelled."""
        await self._keep_connected(session=self._serve)

    async def _serve(self, broker: BrokerConnection) -> None:
        await declare(broker.connection, self._topology)
        channel = await broker.connection.channel(publisher_confirms=False)
        declared = await channel.queue_declare(exclusive=True, arguments={"x-message-ttl": MAX_AGE})
        queue = str(declared.queue)
        await channel.queue_bind(queue, USER_EVENTS_WAKE)
        subscription = await subscribe(broker, queue)
        await subscription.start(self._receive, prefetch=0, no_ack=True)
        await self._ready()
        self._waiters.wake_all()
        self._health.up(PART)
        await subscription.run(idle=lambda: True)

    def _receive(self, delivery: Delivery) -> None:
        try:
            wake = UserEventsWake.model_validate_json(delivery.body)
        except ValidationError:
            logger.warning("wake not valid")
            self._waiters.wake_all()
        else:
            self._waiters.wake(wake.user_ids)
