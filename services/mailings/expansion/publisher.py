"""Publishes messages as fast as delivery sends them."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from services.mailings.expansion.depth import QueueLimit
from services.mailings.messages import ReadyMessage, outgoing
from shared.amqp.depth import QueueDepthUnknownError
from shared.amqp.publisher import Publisher
from shared.clock import Clock
from shared.errors import InfrastructureError

logger = logging.getLogger(__name__)

# Messages published between two checks of the clock and of the queues.
BATCH_SIZE: Final = 500
# Seconds before a refused publish is repeated, and between two checks of a full queue.
RETRY_DELAY: Final = 0.5


class ThrottledPublisher:
    """Publishes to the queues of the channels, and waits while they are full."""

    def __init__(self, publisher: Publisher, limit: QueueLimit, clock: Clock) -> None:
        self._publisher = publisher
        self._limit = limit
        self._clock = clock

    async def ready(self) -> None:
        """Wait until publishing is possible."""
        await self._publisher.ready()

    async def is_full(self, queues: Iterable[str]) -> bool:
        """Return whether one of these queues is full, or its depth is unknown."""
        try:
            for queue in queues:
                if await self._limit.is_full(queue):
                    return True
        except QueueDepthUnknownError as error:
            logger.warning("expansion paused: %s", error)
            return True
        return False

    async def publish(
        self,
        messages: Sequence[ReadyMessage],
        queues: Collection[str],
        *,
        check: Callable[[], None],
        traceparent: str | None,
    ) -> None:
        """Publish until all messages are confirmed. Repeats have the same logical id.

        Before each batch but the first, it waits while a queue is full. `check` is called before
        each batch, and raises an error when nothing more may be published.

        Raises:
            UnpublishableError: a bug.
        """
        for start in range(0, len(messages), BATCH_SIZE):
            check()
            while start and await self.is_full(queues):
                await asyncio.sleep(RETRY_DELAY)
                check()
            pending = messages[start : start + BATCH_SIZE]
            while pending := await self._attempt(pending, traceparent):
                await asyncio.sleep(RETRY_DELAY)
                await self._publisher.ready()
                check()

    async def _attempt(
        self, messages: Sequence[ReadyMessage], traceparent: str | None
    ) -> list[ReadyMessage]:
        """Publish messages, and return those that were not confirmed."""
        now = self._clock.now()
        results = await asyncio.gather(
            *(self._publisher.publish(outgoing(message, traceparent, now)) for message in messages),
            return_exceptions=True,
        )
        failed = []
        for message, error in zip(messages, results, strict=True):
            if isinstance(error, InfrastructureError):
                failed.append((message, error))
            elif error is not None:
                raise error
        if failed:
            logger.warning("publishing %d messages again: %s", len(failed), failed[0][1])
        return [message for message, _ in failed]
