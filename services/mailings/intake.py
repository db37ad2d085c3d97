"""Takes postings in, in batches: one statement for many, and each is answered by itself."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from json import dumps
from typing import Final
from uuid import UUID

from services.mailings import metrics
from services.mailings.store import Order, Store
from shared.contracts.posting_requests import PostingAccepted, PostingState
from shared.contracts.postings import Posting
from shared.resilience.batching import Batcher

logger = logging.getLogger(__name__)

# Postings in one statement.
BATCH: Final = 500


class OtherOrder:
    """Another posting was ordered under this id, or one that is not this client's to see."""


OTHER_ORDER: Final = OtherOrder()
Taken = PostingAccepted | OtherOrder


def order(
    id_: UUID,
    posting: Posting,
    *,
    at: float,
    client_id: str | None = None,
    traceparent: str | None = None,
) -> Order:
    """The order of a posting that was made at a moment, in epoch seconds."""
    lifetime = posting.lifetime
    expires_at = None
    if lifetime is not None:
        expires_at = datetime.fromtimestamp(at, UTC) + timedelta(seconds=lifetime)
    fields = posting.model_dump(mode="json", exclude_unset=True)
    fingerprint = sha256(dumps(fields, sort_keys=True).encode()).digest()
    return Order(id_, posting, fingerprint, expires_at, client_id, traceparent)


class Intake:
    """Takes orders in. `wake` hears of each."""

    def __init__(self, store: Store, wake: Callable[[], None]) -> None:
        self._store = store
        self._wake = wake
        self._batches: Batcher[Order, bool] = Batcher(self._accept, max_size=BATCH)

    async def run(self) -> None:
        """Take in what comes until cancelled."""
        await self._batches.run()

    async def take(self, ordered: Order) -> Taken:
        """Take an order in, or find that it was before: a repeat changes nothing.

        Raises:
            StoreConnectionLostError: repeat it with the same id.
        """
        if await self._batches.add(ordered):
            metrics.POSTINGS.labels("accepted").inc()
            logger.info(
                "posting accepted",
                extra={
                    "posting_id": str(ordered.id),
                    "from_event": ordered.posting.from_event,
                    "client_id": ordered.client_id,
                },
            )
            return PostingAccepted(id=ordered.id, status=PostingState.ACCEPTED)
        metrics.POSTINGS.labels("repeated").inc()
        known = await self._store.known(ordered.id, ordered.client_id)
        if known is None or known[0] != ordered.fingerprint:
            return OTHER_ORDER
        return PostingAccepted(id=ordered.id, status=known[1])

    async def _accept(self, orders: list[Order]) -> list[bool]:
        first = {each.id: each for each in reversed(orders)}
        fresh = await self._store.accept(list(first.values()))
        if fresh:
            self._wake()
        return [each.id in fresh and each is first[each.id] for each in orders]
