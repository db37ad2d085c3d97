"""One turn of one posting: page after page, fetched, written, published, checkpointed."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from services.mailings import metrics
from services.mailings.domain import InvalidPostingError, Page, PageUrls, page
from services.mailings.expansion.publisher import ThrottledPublisher
from services.mailings.expansion.sources import SourceError, Sources
from services.mailings.messages import Addressee, Composer, Draft
from services.mailings.store import Claim, Row, Store
from shared.clock import Clock
from shared.contracts.posting_requests import MessageState
from shared.errors import InfrastructureError
from shared.registry import CHANNELS

logger = logging.getLogger(__name__)

# Seconds of a turn, once its first page is done.
LONGEST: Final = 1.0
# Seconds until another process goes on with what a dead one held: within 30 s.
LEASE: Final = 15.0
# Users written at a time: a page of the usual size.
PART: Final = 500
# Users rendered before others get their turn of this process: some milliseconds.
IN_A_ROW: Final = 50


class SliceDeferredError(Exception):
    """The turn can't go on now, through no fault of the posting's; the text says why."""


class ExpansionSlice:
    """A turn. `page` counts the pages that are done, `tries` those in vain since the last."""

    def __init__(  # noqa: PLR0913 - what a turn works with
        self,
        claim: Claim,
        store: Store,
        sources: Sources,
        outlet: ThrottledPublisher,
        *,
        clock: Clock,
        most_receivers: int,
        stopping: Callable[[], bool],
    ) -> None:
        self.claim = claim
        self.page = claim.pages
        self.tries = claim.tries
        self._written = claim.pages
        self._receivers = claim.receivers
        self._store = store
        self._sources = sources
        self._outlet = outlet
        self._clock = clock
        self._most_receivers = most_receivers
        self._stopping = stopping
        self._take_back = claim.interrupted
        self._giving: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._giving.set_result(None)
        self._until = clock.monotonic() + LONGEST

    @property
    def held(self) -> bool:
        """Whether pages that are not done may have messages, written or even published."""
        return self._take_back or self._written > self.page

    async def check_room(self) -> None:
        """Begin no page while too much waits for delivery.

        Raises:
            SliceDeferredError: it does.
        """
        channels = self.claim.posting.delivery_type
        if await self._outlet.full(channels):
            queues = " or ".join(CHANNELS[channel].queue for channel in channels)
            raise SliceDeferredError(f"enough messages wait in {queues}")

    async def put_off(self, delay: float, reason: str | None = None) -> None:
        """End the turn; the next comes in `delay` seconds at the earliest."""
        await self._store.put_off(
            self.claim, held=self.held, delay=delay, tries=self.tries, reason=reason
        )

    async def run(self, composer: Composer) -> bool:
        """Go through pages; whether the last one is done.

        Raises:
            Expired, SliceDeferredError.
            InvalidPostingError: the receivers are nonsense, or without end.
            SourceError: the next page can't be had now.
            InfrastructureError, LeaseLost: the turn did not end by itself.
        """
        urls = PageUrls.of(self.claim.posting.receivers)
        number = self.page
        fetching = asyncio.create_task(self._fetch(urls, number))
        try:
            while True:
                found = await fetching
                there = self._addressees(found, number)
                await self.check_room()
                over = found.last or self._clock.monotonic() >= self._until or self._stopping()
                if not over:
                    fetching = asyncio.create_task(self._fetch(urls, number + 1))
                await self._page(composer, there, found)
                if over:
                    await self._giving
                    return found.last
                number += 1
        except (SourceError, InvalidPostingError, SliceDeferredError, InfrastructureError):
            await self._giving  # what was begun is done
            raise
        finally:
            for task in (fetching, self._giving):
                task.cancel()
            await asyncio.gather(fetching, self._giving, return_exceptions=True)

    async def _fetch(self, urls: PageUrls, number: int) -> Page:
        with metrics.FETCH.time():
            try:
                return page(await self._sources.json(urls.at(number)), urls.size)
            except InvalidPostingError as error:
                raise InvalidPostingError(f"{_place(number)}: {error}") from None
            except SourceError as error:
                raise SourceError(f"{_place(number)}: {error}") from None

    def _addressees(self, found: Page, number: int) -> list[Addressee]:
        """Those of a page, each once.

        Raises:
            InvalidPostingError: there are none but nonsense, or too many in all.
        """
        self._receivers += len(found.items)
        if self._receivers > self._most_receivers:
            raise InvalidPostingError(
                f"{_place(number)}: more than {self._most_receivers} receivers: a list without end?"
                " (RINGBACK_MAILINGS_MOST_RECEIVERS)"
            )
        there: dict[str, Addressee] = {}
        for place, item in enumerate(found.items, start=1):
            to = Addressee.of(item, f"page {number + 1}, item {place}")
            there.setdefault(to.id, to)
        if there and all(to.fault for to in there.values()):
            fault = next(iter(there.values())).fault
            raise InvalidPostingError(f"{_place(number)}: nothing in it is a user: {fault}")
        return list(there.values())

    async def _page(self, composer: Composer, there: Sequence[Addressee], found: Page) -> None:
        """Write a page, and begin to give it out once what was before it is done."""
        begin = self._clock.monotonic()
        number = self._written
        receivers = len(found.items)
        fresh = 0
        known: list[UUID] = []
        parts = [there[start : start + PART] for start in range(0, len(there), PART)] or [[]]
        for place, part in enumerate(parts):
            rows, drafts = await _composed(composer, part)
            new = await self._store.put(self.claim, number, rows, take_back=self._take_back)
            if not self._written and not self._take_back:
                logger.info("posting expanding", extra=about(self.claim))
            self._take_back = False
            self._written = number + 1
            users = {to.id for to in part if to.fault is None}
            ids = [row.id for row in rows if row.user_id in users]
            fresh += len(new.intersection(ids))
            known += ids
            _count(rows, new)
            await self._giving
            last = place == len(parts) - 1
            if last and not found.last and not fresh:
                await self._check_progress(number, known)
            self._giving = asyncio.create_task(
                self._give(
                    [draft for draft in drafts if draft.id in new],
                    number,
                    receivers if last else None,
                    begin,
                )
            )

    async def _check_progress(self, number: int, ids: Sequence[UUID]) -> None:
        """A page that holds nobody new, and is not just one that is repeated, repeats for ever."""
        if await self._store.known_before(self.claim, number, ids) == len(ids):
            raise InvalidPostingError(
                f"{_place(number)}: all its users were on pages before: a list without end?"
            )

    async def _give(
        self, drafts: Sequence[Draft], number: int, receivers: int | None, begin: float
    ) -> None:
        """Publish messages of a page; with `receivers`, they are its last: set the checkpoint."""
        claim = self.claim
        await self._outlet.publish(
            drafts,
            claim.posting.delivery_type,
            expires_at=claim.expires_at,
            traceparent=claim.traceparent,
        )
        if receivers is not None:
            await self._store.checkpoint(claim, pages=number + 1, receivers=receivers, lease=LEASE)
            self.page = number + 1
            self.tries = 0
            metrics.GIVE_OUT.observe(self._clock.monotonic() - begin)


def about(claim: Claim) -> dict[str, object]:
    """What every log line about a posting tells."""
    return {"posting_id": str(claim.id), "from_event": claim.posting.from_event}


async def _composed(
    composer: Composer, there: Sequence[Addressee]
) -> tuple[list[Row], list[Draft]]:
    rows: list[Row] = []
    drafts: list[Draft] = []
    for place, to in enumerate(there):
        if place % IN_A_ROW == 0:
            await asyncio.sleep(0)
        for row, draft in composer.compose(to):
            rows.append(row)
            if draft is not None:
                drafts.append(draft)
    return rows, drafts


def _count(rows: Sequence[Row], new: set[UUID]) -> None:
    for row in rows:
        if row.id in new:
            status = MessageState.CREATED if row.why is None else MessageState.SKIPPED
            metrics.MESSAGES[row.channel, status].inc()


def _place(number: int) -> str:
    return f"receivers, page {number + 1}"
