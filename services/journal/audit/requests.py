"""The request handlers: the audit log."""

from collections.abc import Mapping

from services.journal.missing import Handler, missing
from shared.contracts.journal_reads import AUDIT_OPERATIONS


class AuditRequests:
    """Handles these operations."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return missing(AUDIT_OPERATIONS)
