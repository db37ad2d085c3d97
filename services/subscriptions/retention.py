"""Deletes old user events, messages and deliveries, and expired tokens."""

import asyncio
import logging
from datetime import timedelta
from typing import Final

from services.subscriptions.endpoints.messages import EndpointMessages
from services.subscriptions.messenger.store import Messenger
from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

# Seconds. Short, so that each round has little to delete.
INTERVAL: Final = 60.0
# Rows deleted in one statement, so that it is short and blocks no other.
BATCH: Final = 1000


class Retention:
    """Deletes events, messages and finished deliveries that are older than `age`."""

    def __init__(self, messenger: Messenger, messages: EndpointMessages, age: timedelta) -> None:
        self._messenger = messenger
        self._messages = messages
        self._age = age

    async def run(self) -> None:
        """Delete until cancelled."""
        while True:
            try:
                await self.run_once()
            except StoreConnectionLostError as error:
                logger.warning("old rows not deleted: %s", error)
            await asyncio.sleep(INTERVAL)

    async def run_once(self) -> int:
        """Delete all old rows, and return their number."""
        total = 0
        while deleted := await self._messenger.prune(self._age, BATCH):
            total += deleted
        while deleted := await self._messages.prune(self._age, BATCH):
            total += deleted
        while deleted := await self._messenger.delete_expired_tokens(BATCH):
            total += deleted
        return total
