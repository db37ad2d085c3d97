"""The queue `postings`: from a message to a posting in the database."""

import logging
from typing import Final

from pydantic import BaseModel, ValidationError

from services.mailings import metrics
from services.mailings.domain import posting_id
from services.mailings.intake import Intake, OtherOrder, order
from shared.amqp.message import Dead, Message, Outcome
from shared.clock import Clock
from shared.contracts.context import field_errors
from shared.contracts.postings import POSTING, Posting
from shared.errors import ContractViolation

logger = logging.getLogger(__name__)

JSON: Final = "application/json"
FAULTS_NAMED: Final = 10


def read(message: Message[Posting], *, max_bytes: int) -> Posting:
    """The posting in a message.

    Raises:
        ContractViolation: it is none; every wrong field is named, no value is.
    """
    properties = message.properties
    if len(message.body) > max_bytes:
        raise ContractViolation(f"{len(message.body)} bytes, at most {max_bytes} are taken")
    if properties.type != POSTING:
        raise ContractViolation(f"type is {properties.type!r}, not {POSTING!r}")
    if (properties.content_type or "").split(";")[0].strip().lower() != JSON:
        raise ContractViolation(f"content_type is {properties.content_type!r}, not {JSON!r}")
    if properties.content_encoding not in (None, "", "identity", "utf-8", "UTF-8"):
        raise ContractViolation(f"content_encoding {properties.content_encoding!r} is not taken")
    try:
        return Posting.model_validate_json(message.body)
    except ValidationError as error:
        named = [f"{each.field}: {each.message}".removeprefix(": ") for each in field_errors(error)]
        more = f" and {len(named) - FAULTS_NAMED} more" if len(named) > FAULTS_NAMED else ""
        raise ContractViolation("; ".join(named[:FAULTS_NAMED]) + more) from None


class Handler:
    """Takes postings in."""

    def __init__(self, intake: Intake, clock: Clock) -> None:
        self._intake = intake
        self._clock = clock

    async def handle(self, message: Message[Posting]) -> None:
        """Take a posting in, under its logical id; it is committed when this returns.

        Raises:
            ContractViolation: another posting came under this id.
            StoreLost: repeat it later.
        """
        posting = message.model
        assert posting is not None  # noqa: S101 - read comes first
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
            raise ContractViolation("another posting came under this id: give each its own")


def report(message: Message[Posting], outcome: Outcome[None]) -> BaseModel | None:
    """Count and log what is dead."""
    if isinstance(outcome, Dead):
        metrics.POSTINGS.labels("invalid").inc()
        logger.error("posting dead", extra={"message_id": message.id, "reason": outcome.reason})
    return None
