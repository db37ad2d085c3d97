"""The request handlers: dead letters: their index, redrive and discard."""

from collections.abc import Mapping

from services.journal.missing import Handler, missing
from shared.contracts.journal_dead import DEAD_OPERATIONS


class DeadRequests:
    """Handles these operations."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return missing(DEAD_OPERATIONS)
