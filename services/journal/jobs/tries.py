"""Limits how often a job publishes messages again that the broker does not confirm. Pure.

The number of tries is saved with the job, so a kill does not reset it.
"""

from typing import Final, TypeGuard

from shared.amqp.publisher import PublishUnknownError, QueueFullError
from shared.errors import InfrastructureError, PermanentError

# Tries in a row, a second apart. A full queue stores nothing that it refuses. Without a response,
# each try can send every message once more.
MAX_REFUSED: Final = 60
MAX_UNKNOWN: Final = 5


def was_published(result: object) -> TypeGuard[InfrastructureError]:
    """Return whether the broker got the message. Otherwise it had no connection, or an alarm."""
    return isinstance(result, QueueFullError | PublishUnknownError)


def check_tries(tries: int, error: InfrastructureError, *, action: str, advice: str) -> None:
    """Check that another try may follow an error.

    Raises:
        PermanentError: the broker has confirmed nothing for too long.
    """
    limit = MAX_UNKNOWN if isinstance(error, PublishUnknownError) else MAX_REFUSED
    if tries >= limit:
        raise PermanentError(f"Cannot {action}: {error}, {tries} times in a row. {advice}")
