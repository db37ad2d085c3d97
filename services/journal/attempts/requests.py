"""The request handlers: attempts, timelines and the live tail."""

from collections.abc import Mapping

from services.journal.missing import Handler, missing
from shared.contracts.journal_reads import ATTEMPT_OPERATIONS


class AttemptRequests:
    """Handles these operations."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return missing(ATTEMPT_OPERATIONS)
