"""One slice of an expansion: pages are fetched, composed, added, published and checkpointed."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from services.mailings import metrics
from services.mailings.domain import InvalidPostingError, Recipient
from services.mailings.expansion.publisher import ThrottledPublisher
from services.mailings.expansion.recipients import (
    Clients,
    RecipientPage,
    RecipientSource,
    position_of,
)
from services.mailings.expansion.slots import NoSlotError, Slot
from services.mailings.expansion.sources import SourceError
from services.mailings.expansion.timing import SliceDeferredError, Timing
from services.mailings.messages import Composer, ReadyMessage
from services.mailings.records import Claim, Cohort, MessageChange, MessageRow
from services.mailings.store import Store
from shared.clock import Clock
from shared.contracts.headers import unsampled
from shared.contracts.message_facts import ReasonCode
from shared.contracts.posting_requests import MessageState
from shared.errors import InfrastructureError
from shared.registry import BULK, CHANNELS

logger = logging.getLogger(__name__)

# Seconds after which a slice ends, once its first page is done.
SLICE_DURATION: Final = 1.0
# Seconds after which another process continues a posting whose process has died.
LEASE: Final = 15.0
# Seconds before a posting with a full queue is checked again. A small one waits longer, a tenth of
# its age: thousands that are checked twice a second would keep the database busy. The messages in
# a full queue last longer than that.
FULL_QUEUE_DELAY: Final = 0.5
MAX_FULL_QUEUE_DELAY: Final = 5.0
AGE_FACTOR: Final = 0.1
CLIENT_DELETED: Final = ReasonCode.INVALID_RECIPIENT, "the client was deleted"
# Recipients whose messages are added at a time: a page of the usual size.
BATCH_SIZE: Final = 500
# Pages by which those of a list may outnumber its users. With cursors, a page can be empty.
MAX_EMPTY_PAGES: Final = 1000
# Pages by which a list may grow during its expansion. A list that repeats its pages does not end.
MAX_GROWTH: Final = 200
# Seconds of composing before other tasks of this process run. A large message alone takes longer.
COMPOSE_DURATION: Final = 0.01


class ExpansionSlice:
    """A slice of an expansion.

    A posting whose users are more than one small response is a list. Its slice needs a slot for
    lists, because it keeps more in memory and takes longer.

    pages: the checkpoint, in pages.
    failures: failed slices since the checkpoint.
    counts: the messages by status at the last checkpoint.
    """

    def __init__(  # noqa: PLR0913 - the worker names each
        self,
        claim: Claim,
        store: Store,
        publisher: ThrottledPublisher,
        slot: Slot,
        timing: Timing,
        *,
        clock: Clock,
        is_stopping: Callable[[], bool],
    ) -> None:
        self.claim = claim
        self._slot = slot
        self._timing = timing
        self._queues = queues_of(claim).values()
        self.pages = claim.pages
        self.failures = claim.failures
        self.counts: dict[str, int] = {}
        self._added_pages = claim.pages
        self._receivers = claim.receivers
        self._store = store
        self._publisher = publisher
        self._clock = clock
        self._is_stopping = is_stopping
        self._remove_unfinished = claim.unfinished
        self._publishing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publishing.set_result(None)
        self._end = clock.monotonic() + SLICE_DURATION

    @property
    def unfinished(self) -> bool:
        """Return whether pages after the checkpoint may have messages, even published ones."""
        return self._remove_unfinished or self._added_pages > self.pages

    async def check_queues(self) -> None:
        """Raise an error if too many messages wait for delivery.

        Raises:
            SliceDeferredError: they do.
        """
        if await self._publisher.is_full(self._queues):
            reason = f"too many messages wait in {' or '.join(self._queues)}"
            delay = FULL_QUEUE_DELAY
            if not self._slot.needs_list:
                delay = max(delay, min(self.claim.age * AGE_FACTOR, MAX_FULL_QUEUE_DELAY))
            raise SliceDeferredError(delay, reason)

    def is_over(self) -> bool:
        """Return whether the slice should end after the current page."""
        return self._clock.monotonic() >= self._end or self._is_stopping()

    async def release(self, delay: float, reason: str | None = None) -> None:
        """End the slice; the next one is due in `delay` seconds."""
        await self._store.release(
            self.claim,
            unfinished=self.unfinished,
            is_list=self._slot.needs_list,
            delay=delay,
            failures=self.failures,
            reason=reason,
        )

    async def run(self, source: RecipientSource, composer: Composer) -> bool:
        """Expand pages, and return whether the last page of the list is done.

        The next page is fetched, and its messages are added, while a page is being published.

        Raises:
            PostingExpiredError, NoSlotError.
            SliceDeferredError: nothing may be published now.
            InvalidPostingError: the user list is invalid, or does not end.
            SourceError: the next page is not available.
            InfrastructureError, LeaseLostError: the slice was interrupted.
        """
        number = self.pages
        fetching = asyncio.create_task(self._fetch(source, self.claim.next_page, number))
        try:
            while True:
                page = await fetching
                self._receivers += page.entries
                await self.check_queues()
                # A rate permits one page. The next slice is due when it permits more.
                ends = await self._timing.pace(page.entries) or self.is_over()
                if page.next_page is not None and not self._slot.extend():
                    ends = True
                if not ends and page.next_page is not None:
                    following = self._fetch(source, page.next_page, number + 1)
                    fetching = asyncio.create_task(following)
                await self._expand(page, number, composer)
                if ends or page.next_page is None:
                    await self._publishing
                    return page.next_page is None
                number += 1
        except (
            *(SourceError, InvalidPostingError, SliceDeferredError),
            *(NoSlotError, InfrastructureError),
        ):
            await self._publishing  # the previous page gets its checkpoint
            raise
        finally:
            for task in (fetching, self._publishing):
                task.cancel()
            await asyncio.gather(fetching, self._publishing, return_exceptions=True)

    async def publish_returned(self, clients: Clients, composer: Composer) -> bool:
        """Publish what delivery has returned, and return whether that is done.

        A message whose client does not exist any more is cancelled.

        Raises:
            PostingExpiredError.
            SliceDeferredError: nothing may be published now.
            InfrastructureError, LeaseLostError: the slice was interrupted.
        """
        while returned := await self._store.returned_messages(self.claim, self._timing.page_size):
            await self.check_queues()
            ends = await self._timing.pace(len(returned)) or self.is_over()
            found = await clients.find_all([message.user_id for message in returned])
            rows, messages = await compose(composer, list(found.values()), self._clock)
            await self._publish(messages)
            # Only now: after a crash, they are published once more, under the same ids.
            published = {message.id for message in messages}
            await self._store.published_again(
                self.claim, [message for message in returned if message.id in published]
            )
            if len(published) < len(returned):
                reasons = {row.id: (row.reason_code, row.reason) for row in rows}
                await self._store.settle(
                    [
                        MessageChange(
                            *(self.claim.id, message.id, MessageState.CANCELLED),
                            *reasons.get(message.id, CLIENT_DELETED),
                        )
                        for message in returned
                        if message.id not in published
                    ]
                )
            if ends:
                return False
        return True

    async def _fetch(
        self, source: RecipientSource, position: str | None, number: int
    ) -> RecipientPage:
        with metrics.FETCH.time():
            return await source.page(position, number, self._receivers)

    async def _expand(self, page: RecipientPage, number: int, composer: Composer) -> None:
        """Add the messages of a page, and start to publish them after the previous page."""
        begin = self._clock.monotonic()
        known: list[UUID] = []
        has_new_user = False
        batches = [
            page.recipients[start : start + BATCH_SIZE]
            for start in range(0, len(page.recipients), BATCH_SIZE)
        ] or [[]]
        for batch in batches:
            rows, messages = await compose(composer, batch, self._clock)
            new = await self._add(number, rows)
            users = {recipient.id for recipient in batch if recipient.error is None}
            ids = [row.id for row in rows if row.user_id in users]
            has_new_user = has_new_user or any(id_ in new for id_ in ids)
            known += ids
            await self._publishing
            ends_page = batch is batches[-1]
            if ends_page and page.next_page is not None and not has_new_user:
                await self._check_progress(number, known)
            new_messages = [
                message for message in messages if new.get(message.id) is MessageState.CREATED
            ]
            self._publishing = asyncio.create_task(
                self._publish_and_checkpoint(new_messages, number, page, begin)
                if ends_page
                else self._publish(new_messages)
            )

    async def _add(self, number: int, rows: Sequence[MessageRow]) -> dict[UUID, MessageState]:
        """Add messages of a page to the database, and return the states of those that are new."""
        new = await self._store.add_messages(
            self.claim, number, rows, remove_unfinished=self._remove_unfinished
        )
        if not self._added_pages and not self._remove_unfinished:
            logger.info("posting expanding", extra=log_context(self.claim))
        self._remove_unfinished = False
        self._added_pages = number + 1
        for row in rows:
            if row.id in new:
                metrics.MESSAGES[row.channel, new[row.id]].inc()
        return new

    async def _check_progress(self, number: int, ids: Sequence[UUID]) -> None:
        """Raise an error for many empty pages, or if all users were on a much earlier page.

        A page that an interrupted slice has already added is not an error, and neither are users
        who moved to later pages because the list has grown at its front.
        """
        if not ids:
            if number >= self._receivers + MAX_EMPTY_PAGES:
                raise InvalidPostingError(
                    f"{position_of(number)}: too many pages are empty. Check that the list ends"
                )
            return
        count, page = await self._store.known_before(self.claim, number, ids)
        if count == len(ids) and number - page >= MAX_GROWTH:
            raise InvalidPostingError(
                f"{position_of(number)}: all users were {MAX_GROWTH} pages earlier. Check that the"
                " list ends"
            )

    async def _publish(self, messages: Sequence[ReadyMessage]) -> None:
        traceparent = self.claim.traceparent
        if self.claim.priority == BULK:  # a trace with a million messages cannot be shown
            traceparent = unsampled(traceparent)
        await self._publisher.publish(
            messages,
            self._queues,
            check=self._timing.check,
            traceparent=traceparent,
        )

    async def _publish_and_checkpoint(
        self, messages: Sequence[ReadyMessage], number: int, page: RecipientPage, begin: float
    ) -> None:
        await self._publish(messages)
        self.counts = await self._store.checkpoint(
            self.claim,
            pages=number + 1,
            receivers=page.entries,
            next_page=page.next_page,
            lease=LEASE,
        )
        self.pages = number + 1
        self.failures = 0
        metrics.PUBLISH.observe(self._clock.monotonic() - begin)


def queues_of(claim: Claim) -> dict[str, str]:
    """Return the queue of each channel of a posting."""
    return {name: CHANNELS[name].queues[claim.priority] for name in claim.content.delivery_type}


def log_context(claim: Claim) -> dict[str, object]:
    """Return the fields of every log line about a posting."""
    if isinstance(claim.content, Cohort):
        return {"posting_id": str(claim.id), "mailing_id": str(claim.content.mailing_id)}
    return {"posting_id": str(claim.id), "from_event": claim.content.from_event}


async def compose(
    composer: Composer, recipients: Sequence[Recipient], clock: Clock
) -> tuple[list[MessageRow], list[ReadyMessage]]:
    """Compose the messages of recipients, and let other tasks run every few milliseconds."""
    rows: list[MessageRow] = []
    messages: list[ReadyMessage] = []
    pause_at = clock.monotonic()
    for recipient in recipients:
        if clock.monotonic() >= pause_at:
            await asyncio.sleep(0)
            pause_at = clock.monotonic() + COMPOSE_DURATION
        for row, message in composer.compose(recipient):
            rows.append(row)
            if message is not None:
                messages.append(message)
    return rows, messages
