"""Reads one dead letter in its queue."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

from shared.amqp.connection import CONNECTION_ERRORS, connect, describe_error
from shared.amqp.dead_letters import DeadLetter, parse_dead_letter
from shared.amqp.queue_browser import QueueMissingError, browse_queue
from shared.contracts.journal_dead import LetterDetails
from shared.errors import InfrastructureError
from shared.topology import dead_queue

# Seconds to search a letter. About 50,000 letters are read in this time.
SEARCH_TIMEOUT: Final = 3.0
# Searches of one process at a time.
MAX_SEARCHES: Final = 2
# Messages received ahead, which bounds the memory.
PREFETCH: Final = 1000


class LetterUnreadableError(InfrastructureError):
    """The letter was not found in time, or the broker is unavailable."""


class LetterReader:
    """Reads letters on a connection of its own for each."""

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self._name = name
        self._turns = asyncio.Semaphore(MAX_SEARCHES)

    async def read(self, queue: str, letter_id: str) -> LetterDetails | None:
        """Return a letter of a work queue, or None if it is not in the dead-letter queue.

        Raises:
            LetterUnreadableError: the letter was not found in time, or the broker is unavailable.
        """
        try:
            async with (
                self._turns,
                connect(self._url, name=self._name) as broker,
                browse_queue(broker, dead_queue(queue), prefetch=PREFETCH) as browser,
            ):
                async with asyncio.timeout(SEARCH_TIMEOUT):
                    async for delivery in browser:
                        letter = parse_dead_letter(delivery)
                        if letter.letter_id == letter_id:
                            return _details(letter)
        except TimeoutError:
            raise LetterUnreadableError(
                f"the letter was not found within {SEARCH_TIMEOUT:.0f} seconds; use `ringback dead"
                f" show {queue}`",
                effect_unknown=False,
            ) from None
        except QueueMissingError:
            return None
        except CONNECTION_ERRORS as error:
            raise LetterUnreadableError(describe_error(error), effect_unknown=False) from None
        return None


def _details(letter: DeadLetter) -> LetterDetails:
    shown = letter.details()
    return LetterDetails(
        letter_id=letter.letter_id,
        logical_id=letter.id,
        client_id=letter.client_id,
        target=letter.target,
        reason=letter.reason,
        at=datetime.fromtimestamp(letter.died_at or time.time(), UTC),
        attempts=letter.attempts,
        properties=shown["properties"],
        headers=shown["headers"],
        body=shown["body"],
    )
