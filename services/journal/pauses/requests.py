"""The request handlers: paused targets."""

from collections.abc import Mapping

from services.journal.missing import Handler, missing
from shared.contracts.journal_replays import PAUSE_OPERATIONS


class PauseRequests:
    """Handles these operations."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return missing(PAUSE_OPERATIONS)
