"""The request handlers: jobs: bulk work in the background."""

from collections.abc import Mapping

from services.journal.missing import Handler, missing
from shared.contracts.journal_dead import JOB_OPERATIONS


class JobRequests:
    """Handles these operations."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return missing(JOB_OPERATIONS)
