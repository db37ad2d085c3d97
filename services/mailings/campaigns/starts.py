"""The consumer of the queue `mailings.starts`: the scheduler's notifications of start times."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.amqp.message import Dead, Message, Outcome

logger = logging.getLogger(__name__)

# The AMQP type of the scheduler's notifications.
NOTIFICATION: Final = "Notification"


class StartNotification(BaseModel):
    """A notification of the scheduler: look at this mailing now."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    group_key: UUID


class Handler:
    """Calls `start` with the mailing that a notification names."""

    def __init__(self, start: Callable[[UUID], Awaitable[None]]) -> None:
        self._start = start

    async def handle(self, _: Message, notification: StartNotification) -> None:
        """Start a mailing if it is due.

        Raises:
            StoreConnectionLostError: repeat it later.
        """
        await self._start(notification.group_key)


def report(
    message: Message, notification: StartNotification | None, outcome: Outcome[None]
) -> BaseModel | None:
    """Log a dead letter."""
    if isinstance(outcome, Dead):
        logger.error(
            "start notification dead-lettered",
            extra={
                "message_id": message.id,
                "mailing_id": notification.group_key if notification else None,
                "reason": outcome.reason,
            },
        )
    return None
