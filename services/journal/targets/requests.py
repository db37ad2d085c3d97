"""The request handlers: health of targets, and the overview."""

from collections.abc import Mapping

from services.journal.missing import Handler, missing
from shared.contracts.journal_reads import TARGET_OPERATIONS


class TargetRequests:
    """Handles these operations."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return missing(TARGET_OPERATIONS)
