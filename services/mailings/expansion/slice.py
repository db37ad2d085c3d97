"""One slice of an expansion: pages are fetched, composed, added, published and checkpointed."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from services.mailings import metrics
from services.mailings.domain import (
    InvalidPostingError,
    Page,
    PageUrls,
    Recipient,
    author_of,
    parse_page,
)
from services.mailings.expansion.publisher import ThrottledPublisher
from services.mailings.expansion.slots import Slot
from services.mailings.expansion.sources import LargeResponseError, SourceError, Sources
from services.mailings.messages import Composer, ReadyMessage
from services.mailings.records import Claim, MessageRow
from services.mailings.store import Store
from shared.clock import Clock
from shared.contracts.posting_requests import MessageState
from shared.errors import InfrastructureError
from shared.registry import CHANNELS

logger = logging.getLogger(__name__)

# Seconds after which a slice ends, once its first page is done.
SLICE_DURATION: Final = 1.0
# Seconds after which another process continues a posting whose process has died.
LEASE: Final = 15.0
# Recipients whose messages are added at a time: a page of the usual size.
BATCH_SIZE: Final = 500
# Pages by which those of a list may outnumber its users. With cursors, a page can be empty.
MAX_EMPTY_PAGES: Final = 1000
# Pages by which a list may grow during its expansion. A list that repeats its pages does not end.
MAX_GROWTH: Final = 200
# Seconds of composing before other tasks of this process run. A large message alone takes longer.
COMPOSE_DURATION: Final = 0.01


class SliceDeferredError(Exception):
    """The slice cannot continue now, although the posting is valid. The text is the reason."""


class NoSlotError(Exception):
    """The posting is a list, and other lists use all slots."""


class ExpansionSlice:
    """A slice of an expansion.

    A posting whose users are more than one small response is a list. Its slice needs a slot for
    lists, because it keeps more in memory and takes longer.

    is_list: whether the posting is known to be a list.
    pages: the checkpoint, in pages.
    failures: failed slices since the checkpoint.
    counts: the messages by status at the last checkpoint.
    """

    def __init__(  # noqa: PLR0913 - the worker names each
        self,
        claim: Claim,
        store: Store,
        sources: Sources,
        publisher: ThrottledPublisher,
        slot: Slot,
        *,
        clock: Clock,
        max_receivers: int | None,
        is_stopping: Callable[[], bool],
    ) -> None:
        self.claim = claim
        self._slot = slot
        self._queues = queues_of(claim).values()
        self.is_list = claim.is_list
        self.pages = claim.pages
        self.failures = claim.failures
        self.counts: dict[str, int] = {}
        self._added_pages = claim.pages
        self._receivers = claim.receivers
        self._store = store
        self._sources = sources
        self._publisher = publisher
        self._clock = clock
        self._max_receivers = max_receivers
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
            raise SliceDeferredError(f"too many messages wait in {' or '.join(self._queues)}")

    async def release(self, delay: float, reason: str | None = None) -> None:
        """End the slice; the next one is due in `delay` seconds."""
        await self._store.release(
            self.claim,
            unfinished=self.unfinished,
            is_list=self.is_list,
            delay=delay,
            failures=self.failures,
            reason=reason,
        )

    async def run(self, composer: Composer) -> bool:
        """Expand pages, and return whether the last page of the list is done.

        The next page is fetched, and its messages are added, while a page is being published.

        Raises:
            PostingExpiredError, SliceDeferredError, NoSlotError.
            InvalidPostingError: the user list is invalid, or does not end.
            SourceError: the next page is not available.
            InfrastructureError, LeaseLostError: the slice was interrupted.
        """
        urls = PageUrls.of(self.claim.posting.receivers)
        number = self.pages
        first = self.claim.next_page or urls.at(0)
        fetching = asyncio.create_task(self._fetch(urls, number, first))
        try:
            while True:
                page = await fetching
                recipients = self._recipients(page, number)
                await self.check_queues()
                ends = self._clock.monotonic() >= self._end or self._is_stopping()
                if page.next_page is not None and not self._become_list():
                    ends = True
                if not ends and page.next_page is not None:
                    fetching = asyncio.create_task(self._fetch(urls, number + 1, page.next_page))
                await self._expand(page, number, recipients, composer)
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

    async def _fetch(self, urls: PageUrls, number: int, url: str) -> Page:
        with metrics.FETCH.time():
            try:
                value = await self._json(url)
                if author := author_of(value):
                    value = await self._json(self._sources.follow(url, author))
                page = parse_page(
                    value,
                    size=urls.size,
                    earlier=self._receivers,
                    by_number=urls.at(number + 1),
                )
                if page.next_page is None:
                    return page
                return page._replace(next_page=self._sources.follow(url, page.next_page))
            except InvalidPostingError as error:
                raise InvalidPostingError(f"{_position(number)}: {error}") from None
            except SourceError as error:
                raise SourceError(f"{_position(number)}: {error}") from None

    def _become_list(self) -> bool:
        """Record that the posting is a list, and return whether its slice has a slot for it."""
        self.is_list = True
        return self._slot.extend()

    async def _json(self, url: str) -> Any:
        if not self._slot.is_list:
            with suppress(LargeResponseError):
                return await self._sources.small_json(url)
            if not self._become_list():
                raise NoSlotError
        return await self._sources.json(url)

    def _recipients(self, page: Page, number: int) -> list[Recipient]:
        """Return the recipients of a page, each once.

        Raises:
            InvalidPostingError: every item is invalid, or the list is too long.
        """
        self._receivers += len(page.items)
        if self._max_receivers and max(self._receivers, page.total) > self._max_receivers:
            raise InvalidPostingError(
                f"{_position(number)}: more than {self._max_receivers} receivers. Check"
                " that the list ends, or raise RINGBACK_MAILINGS_MAX_RECEIVERS"
            )
        recipients: dict[str, Recipient] = {}
        for place, item in enumerate(page.items, start=1):
            recipient = Recipient.of(item, f"page {number + 1}, item {place}")
            recipients.setdefault(recipient.id, recipient)
        if recipients and all(recipient.error for recipient in recipients.values()):
            error = next(iter(recipients.values())).error
            raise InvalidPostingError(f"{_position(number)}: no item is a user: {error}")
        return list(recipients.values())

    async def _expand(
        self, page: Page, number: int, recipients: Sequence[Recipient], composer: Composer
    ) -> None:
        """Add the messages of a page, and start to publish them after the previous page."""
        begin = self._clock.monotonic()
        known: list[UUID] = []
        has_new_user = False
        batches = [
            recipients[start : start + BATCH_SIZE]
            for start in range(0, len(recipients), BATCH_SIZE)
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
                    f"{_position(number)}: too many pages are empty. Check that the list ends"
                )
            return
        count, page = await self._store.known_before(self.claim, number, ids)
        if count == len(ids) and number - page >= MAX_GROWTH:
            raise InvalidPostingError(
                f"{_position(number)}: all users were {MAX_GROWTH} pages earlier. Check that the"
                " list ends"
            )

    async def _publish(self, messages: Sequence[ReadyMessage]) -> None:
        await self._publisher.publish(
            messages,
            self._queues,
            expires_at=self.claim.expires_at,
            traceparent=self.claim.traceparent,
        )

    async def _publish_and_checkpoint(
        self, messages: Sequence[ReadyMessage], number: int, page: Page, begin: float
    ) -> None:
        await self._publish(messages)
        self.counts = await self._store.checkpoint(
            self.claim,
            pages=number + 1,
            receivers=len(page.items),
            next_page=page.next_page,
            lease=LEASE,
        )
        self.pages = number + 1
        self.failures = 0
        metrics.PUBLISH.observe(self._clock.monotonic() - begin)


def queues_of(claim: Claim) -> dict[str, str]:
    """Return the queue of each channel of a posting."""
    return {name: CHANNELS[name].queues[claim.priority] for name in claim.posting.delivery_type}


def log_context(claim: Claim) -> dict[str, object]:
    """Return the fields of every log line about a posting."""
    return {"posting_id": str(claim.id), "from_event": claim.posting.from_event}


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


def _position(number: int) -> str:
    return f"receivers, page {number + 1}"
