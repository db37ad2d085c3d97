"""Settles messages by the facts that come back from delivery, in batches."""

import logging
from typing import Final
from uuid import UUID

from pydantic import BaseModel

from services.mailings import metrics
from services.mailings.domain import stored
from services.mailings.store import Settled, Store
from shared.amqp.message import Dead, Message, Outcome
from shared.contracts.message_facts import (
    MessageExpired,
    MessageFact,
    MessageFacts,
    MessageFailed,
    MessageSent,
)
from shared.contracts.posting_requests import MessageState
from shared.resilience.batching import Batcher

logger = logging.getLogger(__name__)

# AMQP messages of facts in one transaction; each holds up to 500.
MOST_MESSAGES: Final = 4


class Settler:
    """Turns facts into what becomes of messages; several AMQP messages make one transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batches: Batcher[MessageFacts, None] = Batcher(self._settle, max_size=MOST_MESSAGES)

    async def run(self) -> None:
        """Settle until cancelled."""
        await self._batches.run()

    async def handle(self, _: Message, facts: MessageFacts) -> None:
        """Settle the facts of a message; that is committed when this returns.

        Raises:
            StoreConnectionLostError: repeat it later.
        """
        await self._batches.add(facts)

    async def _settle(self, messages: list[MessageFacts]) -> list[None]:
        facts = [said for each in messages for fact in each.facts if (said := settled(fact))]
        if facts:
            changed, done = await self._store.settle(facts)
            for channel, status in changed:
                metrics.MESSAGES[channel, status].inc()
            for posting in done:
                metrics.POSTINGS.labels("done").inc()
                about = {"posting_id": str(posting.id), "from_event": posting.from_event}
                logger.info("posting done", extra=about | {"messages": posting.messages})
        return [None] * len(messages)


def settled(fact: MessageFact) -> Settled | None:
    """What a fact says of a message of ours; None where it is nobody's, or says nothing final."""
    try:
        ids = UUID(fact.posting_id or ""), UUID(fact.message_id)
    except ValueError:
        return None
    match fact:
        case MessageSent():
            return Settled(*ids, MessageState.SENT, None)
        case MessageFailed():
            return Settled(*ids, MessageState.FAILED, stored(fact.reason))
        case MessageExpired():
            return Settled(*ids, MessageState.EXPIRED, stored(fact.reason))
        case _:
            return None


def report(message: Message, _: MessageFacts | None, outcome: Outcome[None]) -> BaseModel | None:
    """Log what can't be read."""
    if isinstance(outcome, Dead):
        logger.error("facts dead", extra={"message_id": message.id, "reason": outcome.reason})
    return None
