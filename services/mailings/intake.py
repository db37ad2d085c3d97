"""Accepts postings in batches: one statement stores many, and each gets its own result."""

import logging
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from json import dumps
from typing import Final
from uuid import UUID

from services.mailings import metrics
from services.mailings.records import NewPosting
from services.mailings.rendering.loader import TemplateLoader
from services.mailings.store import Store
from shared.contracts.posting_requests import PostingAccepted, PostingState
from shared.contracts.postings import Posting
from shared.registry import BULK, URGENT, Priority
from shared.resilience.batching import Batcher

logger = logging.getLogger(__name__)

# Postings in one statement.
BATCH_SIZE: Final = 500


class PostingConflict:
    """The id belongs to a different posting, or to one that the client cannot see."""


_CONFLICT: Final = PostingConflict()


def new_posting(  # noqa: PLR0913 - each is a part of the posting
    id_: UUID,
    posting: Posting,
    *,
    at: float,
    templates: TemplateLoader,
    client_id: str | None = None,
    traceparent: str | None = None,
) -> NewPosting:
    """Return a posting that was published at a given time, in epoch seconds.

    Its priority is `urgent` by default if its template is required for a channel.
    """
    lifetime = posting.lifetime
    expires_at = None
    if lifetime is not None:
        expires_at = datetime.fromtimestamp(at, UTC) + timedelta(seconds=lifetime)
    fields = posting.model_dump(mode="json", exclude_unset=True)
    fingerprint = sha256(dumps(fields, sort_keys=True).encode()).digest()
    priority = posting.priority
    if priority is None:
        required = templates.is_required(posting.template, posting.delivery_type)
        priority = URGENT if required else BULK
    return NewPosting(id_, posting, fingerprint, expires_at, priority, client_id, traceparent)


class Intake:
    """Accepts postings, and calls `wake` when one is new."""

    def __init__(self, store: Store, wake: Callable[[Collection[Priority]], None]) -> None:
        self._store = store
        self._wake = wake
        self._batches: Batcher[NewPosting, bool] = Batcher(self._accept, max_size=BATCH_SIZE)

    async def run(self) -> None:
        """Accept postings until cancelled."""
        await self._batches.run()

    async def accept(self, posting: NewPosting) -> PostingAccepted | PostingConflict:
        """Accept a posting. A repeat changes nothing.

        Raises:
            StoreConnectionLostError: the effect is unknown; repeat it with the same id.
        """
        if await self._batches.add(posting):
            metrics.POSTINGS.labels("accepted").inc()
            logger.info(
                "posting accepted",
                extra={
                    "posting_id": str(posting.id),
                    "from_event": posting.posting.from_event,
                    "client_id": posting.client_id,
                },
            )
            return PostingAccepted(id=posting.id, status=PostingState.ACCEPTED)
        metrics.POSTINGS.labels("repeated").inc()
        known = await self._store.find(posting.id, posting.client_id)
        if known is None or known[0] != posting.fingerprint:
            return _CONFLICT
        return PostingAccepted(id=posting.id, status=known[1])

    async def _accept(self, postings: list[NewPosting]) -> list[bool]:
        first = {posting.id: posting for posting in reversed(postings)}
        new = await self._store.accept(list(first.values()))
        if new:
            self._wake({posting.priority for posting in postings})
        return [posting.id in new and posting is first[posting.id] for posting in postings]
