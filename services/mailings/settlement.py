"""Settles messages: applies the facts from delivery, in batches."""

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

from pydantic import BaseModel

from services.mailings import metrics
from services.mailings.domain import storable
from services.mailings.records import MessageChange
from services.mailings.store import Store
from shared.amqp.message import Dead, Message, Outcome
from shared.contracts.message_facts import (
    MessageExpired,
    MessageFact,
    MessageFacts,
    MessageFailed,
    MessageReturned,
    MessageSent,
    ReasonCode,
)
from shared.contracts.posting_requests import MessageState
from shared.resilience.batching import Batcher

logger = logging.getLogger(__name__)

# AMQP messages in one transaction. Each contains up to 500 facts.
BATCH_SIZE: Final = 4


class Settler:
    """Applies facts to messages. Several AMQP messages share one transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batches: Batcher[MessageFacts, None] = Batcher(self._settle, max_size=BATCH_SIZE)

    async def run(self) -> None:
        """Settle until cancelled."""
        await self._batches.run()

    async def handle(self, _: Message, facts: MessageFacts) -> None:
        """Settle the facts of a message. They are committed when this returns.

        Raises:
            StoreConnectionLostError: the effect is unknown; repeat it later.
        """
        await self._batches.add(facts)

    async def _settle(self, batch: list[MessageFacts]) -> list[None]:
        facts = [fact for each in batch for fact in each.facts]
        ends = await self._later_ends(facts)
        changes = [
            change
            for fact in facts
            if _returned_as(fact, ends) is None and (change := _change(fact))
        ]
        if changes:
            changed, done = await self._store.settle(changes)
            for channel, status in changed:
                metrics.MESSAGES[channel, status].inc()
            for posting in done:
                metrics.POSTINGS.labels("done").inc()
                logger.info(
                    "posting done",
                    extra={
                        "posting_id": str(posting.id),
                        "mailing_id": posting.mailing_id,
                        "from_event": posting.from_event,
                        "messages": posting.messages,
                    },
                )
        returned = {
            ids: code
            for fact in facts
            if (code := _returned_as(fact, ends)) and (ids := _ids(fact))
        }
        if returned:  # after the changes, because a message that was sent needs no other publish
            await self._store.take_back(returned)
        return [None] * len(batch)

    async def _later_ends(self, facts: Iterable[MessageFact]) -> Mapping[str, datetime]:
        """Return the end times of the open mailings whose messages have expired."""
        mailings = {
            fact.mailing_id
            for fact in facts
            if isinstance(fact, MessageExpired) and fact.mailing_id and fact.expires_at
        }
        return await self._store.end_times(mailings) if mailings else {}


def _returned_as(fact: MessageFact, ends: Mapping[str, datetime]) -> ReasonCode | None:
    """Return why a message is published again; None if it is not.

    The end time of its mailing may have been moved since the message was published.
    """
    match fact:
        case MessageReturned(code=code):
            return code
        case MessageExpired(mailing_id=str(mailing_id), expires_at=datetime() as expires_at):
            end = ends.get(mailing_id)
            return ReasonCode.EXPIRED if end is not None and expires_at < end else None
        case _:
            return None


def _ids(fact: MessageFact) -> tuple[UUID, UUID] | None:
    """Return the ids of the posting and the message; None if it is no message of a posting."""
    try:
        return UUID(fact.posting_id or ""), UUID(fact.message_id)
    except ValueError:
        return None


def _change(fact: MessageFact) -> MessageChange | None:
    """Return the change that a fact makes; None if it settles no message of a posting."""
    ids = _ids(fact)
    if ids is None:
        return None
    match fact:
        case MessageSent():
            return MessageChange(*ids, MessageState.SENT, None, None)
        case MessageFailed():
            return MessageChange(*ids, MessageState.FAILED, fact.code, storable(fact.reason))
        case MessageExpired():
            reason = storable(fact.reason)
            return MessageChange(*ids, MessageState.EXPIRED, ReasonCode.EXPIRED, reason)
        case _:
            return None


def report(message: Message, _: MessageFacts | None, outcome: Outcome[None]) -> BaseModel | None:
    """Log a dead letter."""
    if isinstance(outcome, Dead):
        logger.error(
            "facts dead-lettered", extra={"message_id": message.id, "reason": outcome.reason}
        )
    return None
