"""Claims postings and runs an expansion slice of each.

A slice works on pages for about a second. Then the posting is due again after all others. A page
is fetched while the previous one is published. Its messages are added, then published, then the
checkpoint is set. If a slice is interrupted, the next one removes the messages of the unfinished
page and repeats the page under the same ids.
"""

import asyncio
import logging
from typing import Final

from services.mailings import metrics
from services.mailings.domain import InvalidPostingError, storable
from services.mailings.expansion.publisher import PostingExpiredError, ThrottledPublisher
from services.mailings.expansion.slice import (
    LEASE,
    ExpansionSlice,
    SliceDeferredError,
    log_context,
    queues_of,
)
from services.mailings.expansion.sources import MAX_FETCHED_DATA, SourceError, Sources
from services.mailings.messages import ChannelTemplate, Composer
from services.mailings.rendering.bound_template import BoundTemplate
from services.mailings.rendering.loader import InvalidTemplateError, TemplateLoader
from services.mailings.settings import MailingsSettings
from services.mailings.store import Claim, LeaseLostError, Store
from shared.amqp.connection import run_until_first_ends
from shared.amqp.consumer import BUGS
from shared.clock import Clock
from shared.contracts.context import json_text
from shared.errors import InfrastructureError
from shared.topology import POSTINGS

logger = logging.getLogger(__name__)

# Seconds between two checks for due postings.
POLL_INTERVAL: Final = 1.0
# Seconds before a posting with a full queue is checked again.
FULL_QUEUE_DELAY: Final = 0.5
# Seconds between the attempts to use an unavailable source: with timeouts, about ten minutes.
RETRY_DELAYS: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
# Seconds to wait when the broker or the database is unavailable.
UNAVAILABLE_DELAY: Final = 1.0


class ExpansionWorker:
    """Expands postings. Several processes can do so at the same time."""

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        store: Store,
        sources: Sources,
        loader: TemplateLoader,
        publisher: ThrottledPublisher,
        *,
        clock: Clock,
        settings: MailingsSettings,
    ) -> None:
        self._store = store
        self._sources = sources
        self._loader = loader
        self._publisher = publisher
        self._clock = clock
        self._settings = settings
        self._new_posting = asyncio.Event()
        self._stopping = asyncio.Event()
        self._slices: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Check for due postings now."""
        self._new_posting.set()

    async def drain(self, grace: float) -> None:
        """Start no more pages, and wait up to `grace` seconds for the current ones."""
        self._stopping.set()
        if self._slices:
            await asyncio.wait(self._slices, timeout=grace)

    async def run(self) -> None:
        """Expand postings until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.concurrency):
                group.create_task(self._work())
            group.create_task(self._work(only_urgent=True))

    async def _work(self, *, only_urgent: bool = False) -> None:
        """Run slices. A worker for urgent postings only is free while bulk ones use the others."""
        while True:
            try:
                await self._publisher.ready()
                if await self.run_once(1, only_urgent=only_urgent):
                    continue
            except InfrastructureError as error:
                logger.warning("expansion paused: %s", error)
                await asyncio.sleep(UNAVAILABLE_DELAY)
                continue
            try:
                async with asyncio.timeout(POLL_INTERVAL):
                    await self._new_posting.wait()
                self._new_posting.clear()
            except TimeoutError:
                pass

    async def run_once(self, limit: int, *, only_urgent: bool = False) -> int:
        """Run a slice of up to `limit` due postings, and return their number."""
        if self._stopping.is_set():
            return 0
        claims = await self._store.claim(limit, lease=LEASE, only_urgent=only_urgent)
        slices = [asyncio.create_task(self._run_slice(claim)) for claim in claims]
        self._slices.update(slices)
        try:
            await asyncio.gather(*slices)
        finally:
            for task in slices:
                task.cancel()
            self._slices.difference_update(slices)
        return len(claims)

    async def _run_slice(self, claim: Claim) -> None:
        """Run a slice while its lease can be renewed."""
        try:
            await run_until_first_ends(self._expand(claim), self._renew(claim))
        except LeaseLostError:
            logger.warning("lease of the posting lost", extra=log_context(claim))
        except InfrastructureError as error:
            # The effect of the last write is unknown. When the lease expires, the next slice
            # repeats the unfinished page.
            logger.warning("expansion slice interrupted: %s", error, extra=log_context(claim))

    async def _renew(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            try:
                if not await self._store.renew(claim, lease=LEASE):
                    raise LeaseLostError
            except InfrastructureError as error:
                logger.warning("lease not renewed: %s", error, extra=log_context(claim))

    async def _expand(self, claim: Claim) -> None:
        """Run a slice, and record how it ended."""
        expansion = ExpansionSlice(
            claim,
            self._store,
            self._sources,
            self._publisher,
            clock=self._clock,
            max_receivers=self._settings.max_receivers,
            is_stopping=self._stopping.is_set,
        )
        try:
            self._publisher.check_expiry(claim.expires_at)
            await expansion.check_queues()
            if await expansion.run(await self._composer(claim)):
                await self._finish(expansion, "expanded")
            else:
                await expansion.release(0.0)
        except PostingExpiredError:
            await self._finish(expansion, "expired", "expired before all messages were published")
        except (InvalidPostingError, InvalidTemplateError) as error:
            await self._finish(expansion, "failed", storable(str(error)))
        except SliceDeferredError as error:
            await expansion.release(FULL_QUEUE_DELAY, str(error))
        except SourceError as error:
            await self._retry(expansion, storable(str(error)))
        except (InfrastructureError, LeaseLostError):
            raise
        except Exception as error:
            BUGS.labels(POSTINGS).inc()
            logger.exception("bug in expansion", extra=log_context(claim))
            await self._retry(expansion, f"internal error: {type(error).__name__}")

    async def _retry(self, expansion: ExpansionSlice, reason: str) -> None:
        expansion.failures += 1
        failures = expansion.failures
        if failures > len(RETRY_DELAYS):
            await self._finish(expansion, "failed", f"failed {failures} times: {reason}")
            return
        context = log_context(expansion.claim) | {"attempt": failures}
        logger.warning("expansion slice failed: %s", reason, extra=context)
        await expansion.release(RETRY_DELAYS[failures - 1], reason)

    async def _finish(
        self, expansion: ExpansionSlice, ended: str, reason: str | None = None
    ) -> None:
        claim = expansion.claim
        counts = await self._store.finish(
            claim,
            ended,
            reason,
            unpublished_from=expansion.pages if expansion.unfinished else None,
        )
        metrics.POSTINGS.labels(ended).inc()
        level = logging.INFO if ended == "expanded" else logging.WARNING
        context = log_context(claim) | {"reason": reason, "messages": counts}
        logger.log(level, "posting %s", ended, extra=context)
        if ended == "expanded" and not counts["created"]:
            metrics.POSTINGS.labels("done").inc()
            logger.info("posting done", extra=log_context(claim) | {"messages": counts})

    async def _composer(self, claim: Claim) -> Composer:
        """Return the composer of a posting. Its data is fetched once.

        Raises:
            InvalidTemplateError, InvalidPostingError, SourceError.
        """
        posting = claim.posting
        templates = {
            channel: self._loader.get(posting.template, channel)
            for channel in posting.delivery_type
        }
        fetched = claim.fetched_data
        if fetched is None:
            variables = dict.fromkeys(
                name for template in templates.values() for name in template.fetch
            )
            fetched = await self._sources.fetch_data(posting.template_context, variables)
            if fetched:
                try:
                    size = len(json_text(fetched))
                except ValueError:
                    raise InvalidPostingError(
                        "the fetched data contains a number that JSON cannot represent"
                    ) from None
                if size > MAX_FETCHED_DATA:
                    raise InvalidPostingError(
                        f"the fetched data is larger than {MAX_FETCHED_DATA} characters"
                    )
                await self._store.save_fetched_data(claim, fetched)
        context = {**posting.template_context, **fetched}
        product = self._settings.product
        return Composer(
            claim.id,
            claim.expires_at,
            {
                channel: ChannelTemplate(
                    BoundTemplate(template, channel, context, product),
                    template.kind,
                    template.is_required,
                )
                for channel, template in templates.items()
            },
            queues_of(claim),
            self._settings.unsubscribe_url,
        )
