"""Publishes the list of paused targets, so that the callback processes follow it."""

import asyncio
import logging
import time
from typing import Final

from pydantic_core import to_json

from services.journal.pauses.store import PausedTargetStore
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.contracts.controls import PAUSED_TARGETS, PausedTargets
from shared.contracts.headers import APP_ID
from shared.errors import InfrastructureError
from shared.topology import CONTROLS

logger = logging.getLogger(__name__)

# Seconds between two publishes of an unchanged list. A stream that was lost has it again then.
INTERVAL: Final = 60.0
RETRY_DELAY: Final = 1.0


class Announcer:
    """Publishes the whole list after each change, at the start, and every minute."""

    def __init__(self, store: PausedTargetStore, publisher: Publisher) -> None:
        self._store = store
        self._publisher = publisher

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._publisher.ready()
            try:
                await self.announce()
            except InfrastructureError as error:
                logger.warning("Cannot publish the paused targets: %s. Retrying.", error)
                await asyncio.sleep(RETRY_DELAY)
            else:
                await asyncio.sleep(INTERVAL)

    async def announce(self) -> None:
        """Publish the list, and return when the last message in the stream is up to date.

        Another process can publish at the same time. If this list is older, but comes later, the
        list is published again.

        Raises:
            InfrastructureError: the broker or the database is unavailable.
        """
        published = None
        while published != (current := await self._store.current()):
            await self._publisher.publish(_message(current))
            published = current


def _message(paused: PausedTargets) -> OutgoingMessage:
    properties = Properties(
        content_type="application/json",
        type=PAUSED_TARGETS,
        message_id=new_id(),
        delivery_mode=PERSISTENT,
        timestamp=int(time.time()),
        app_id=APP_ID,
    )
    return OutgoingMessage(CONTROLS, properties, to_json(paused))
