"""The queue `postings`: from a message to a posting in the database."""

import logging

from pydantic import BaseModel

from services.mailings import metrics
from services.mailings.domain import posting_id
from services.mailings.intake import Intake, OtherOrder, order
from shared.amqp.message import Dead, Message, Outcome
from shared.clock import Clock
from shared.contracts.postings import Posting
from shared.errors import ContractViolationError

logger = logging.getLogger(__name__)


class Handler:
    """Takes postings in."""

    def __init__(self, intake: Intake, clock: Clock) -> None:
        self._intake = intake
        self._clock = clock

    async def handle(self, message: Message, posting: Posting) -> None:
        """Take a posting in, under its logical id; it is committed when this returns.

        Raises:
            ContractViolationError: another posting came under this id.
            StoreConnectionLostError: repeat it later.
        """
        at = message.properties.timestamp
        taken = await self._intake.take(
            order(
                posting_id(message.id),
                posting,
                at=self._clock.now() if at is None else at,
                traceparent=message.traceparent,
            )
        )
        if isinstance(taken, OtherOrder):
            raise ContractViolationError("another posting came under this id: give each its own")


def report(message: Message, _: Posting | None, outcome: Outcome[None]) -> BaseModel | None:
    """Count and log what is dead."""
    if isinstance(outcome, Dead):
        metrics.POSTINGS.labels("invalid").inc()
        logger.error("posting dead", extra={"message_id": message.id, "reason": outcome.reason})
    return None
