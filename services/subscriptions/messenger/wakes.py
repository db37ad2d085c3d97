"""Publishes to all gateways which users have new events."""

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from shared.amqp.codec import Properties
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.contracts.headers import APP_ID
from shared.contracts.user_events import MAX_WAKE_USERS, USER_EVENTS_WAKE, UserEventsWake
from shared.errors import InfrastructureError
from shared.topology import USER_EVENTS_WAKE as EXCHANGE

logger = logging.getLogger(__name__)

# Seconds. A gateway that has lost its connection wakes all its waiters when it reconnects.
RETRY_DELAY: Final = 0.5


class WakePublisher:
    """Publishes wakes. Ids of users are collected while the message before is published."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._user_ids: set[int] = set()
        self._pending = asyncio.Event()

    def add(self, user_ids: Collection[int]) -> None:
        """Publish these users soon. Their new events are already committed."""
        self._user_ids.update(user_ids)
        self._pending.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._pending.wait()
            try:
                await self.run_once()
            except InfrastructureError as error:
                logger.warning("wake not published, retry scheduled: %s", error)
                await asyncio.sleep(RETRY_DELAY)

    async def drain(self, grace: float) -> None:
        """Publish the collected ids, for at most `grace` seconds."""
        with suppress(TimeoutError, InfrastructureError):
            async with asyncio.timeout(grace):
                while self._user_ids:
                    await self.run_once()

    async def run_once(self) -> int:
        """Publish one message, and return the number of users in it.

        Raises:
            InfrastructureError: the message is not confirmed; its users are collected again.
        """
        user_ids = sorted(self._user_ids)[:MAX_WAKE_USERS]
        self._user_ids.difference_update(user_ids)
        if not self._user_ids:
            self._pending.clear()
        try:
            await self._publisher.publish(_message(user_ids))
        except InfrastructureError:
            self.add(user_ids)
            raise
        return len(user_ids)


def _message(user_ids: list[int]) -> OutgoingMessage:
    """Return a message that is not persistent: a restart of the broker ends all waits."""
    return OutgoingMessage(
        "",
        Properties(
            content_type="application/json",
            type=USER_EVENTS_WAKE,
            message_id=new_id(),
            app_id=APP_ID,
        ),
        UserEventsWake(user_ids=user_ids).model_dump_json().encode(),
        exchange=EXCHANGE,
        mandatory=False,
    )
