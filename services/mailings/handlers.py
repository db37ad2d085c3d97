"""The consumer of the queue `postings`."""

import logging

from pydantic import BaseModel

from services.mailings import metrics
from services.mailings.domain import posting_id
from services.mailings.intake import Intake, PostingConflict, new_posting
from services.mailings.rendering.loader import TemplateLoader
from shared.amqp.message import Dead, Message, Outcome
from shared.clock import Clock
from shared.contracts.postings import Posting
from shared.errors import ContractViolationError

logger = logging.getLogger(__name__)


class Handler:
    """Accepts postings."""

    def __init__(self, intake: Intake, templates: TemplateLoader, clock: Clock) -> None:
        self._intake = intake
        self._templates = templates
        self._clock = clock

    async def handle(self, message: Message, posting: Posting) -> None:
        """Accept a posting under its logical id. It is committed when this returns.

        Raises:
            ContractViolationError: the id belongs to a different posting, or the timestamp is not
                valid.
            StoreConnectionLostError: the effect is unknown; repeat it later.
        """
        at = message.sent_at
        result = await self._intake.accept(
            new_posting(
                posting_id(message.id),
                posting,
                at=self._clock.now() if at is None else at,
                templates=self._templates,
                traceparent=message.traceparent,
            )
        )
        if isinstance(result, PostingConflict):
            raise ContractViolationError(
                "the id belongs to a different posting; use a new id for each posting"
            )


def report(message: Message, _: Posting | None, outcome: Outcome[None]) -> BaseModel | None:
    """Count and log a dead letter."""
    if isinstance(outcome, Dead):
        metrics.POSTINGS.labels("invalid").inc()
        logger.error(
            "posting dead-lettered", extra={"message_id": message.id, "reason": outcome.reason}
        )
    return None
