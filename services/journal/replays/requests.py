"""The request handlers: kept requests and replays."""

from collections.abc import Mapping

from services.journal.missing import Handler, missing
from shared.contracts.journal_replays import REPLAY_OPERATIONS


class ReplayRequests:
    """Handles these operations."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return missing(REPLAY_OPERATIONS)
