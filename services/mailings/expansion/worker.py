"""Claims postings and runs an expansion slice of each.

Many slices run at the same time, and share their transactions. The slice of a list works on pages
for about a second. Then the posting is due again after all others. A page
is fetched while the previous one is published. Its messages are added, then published, then the
checkpoint is set. If a slice is interrupted, the next one removes the messages of the unfinished
page and repeats the page under the same ids.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from services.mailings import metrics
from services.mailings.clients.store import Directory
from services.mailings.domain import InvalidPostingError, storable
from services.mailings.expansion.publisher import ThrottledPublisher
from services.mailings.expansion.recipients import Clients, UserList
from services.mailings.expansion.slice import LEASE, ExpansionSlice, log_context, queues_of
from services.mailings.expansion.slots import NoSlotError, Slot, Slots
from services.mailings.expansion.sources import SourceError, Sources
from services.mailings.expansion.timing import PostingExpiredError, SliceDeferredError, Timing
from services.mailings.messages import ChannelTemplate, Composer
from services.mailings.records import Claim, Cohort, LeaseLostError
from services.mailings.rendering.bound_template import BoundTemplate
from services.mailings.rendering.loader import (
    InvalidTemplateError,
    Template,
    TemplateLoader,
    parse_text,
)
from services.mailings.settings import MailingsSettings
from services.mailings.store import Store
from services.mailings.unsubscribe import Unsubscribe
from shared.amqp.consumer import BUGS
from shared.clock import Clock
from shared.errors import InfrastructureError
from shared.registry import URGENT, Priority
from shared.topology import POSTINGS

logger = logging.getLogger(__name__)

# Postings to one recipient that one process expands at a time. At 3,000 a second, one takes 50 ms.
MAX_SMALL: Final = 200
# Seconds after a claim, so that the next one claims many: 30 at 3,000 postings a second.
CLAIM_INTERVAL: Final = 0.01
# Seconds between two checks for due postings.
POLL_INTERVAL: Final = 1.0
# Seconds until a posting is due for which a timer is set: a rate of one message a minute.
MAX_WAKE_DELAY: Final = 60.0
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
        directory: Directory,
        loader: TemplateLoader,
        publisher: ThrottledPublisher,
        *,
        clock: Clock,
        settings: MailingsSettings,
        unsubscribe: Unsubscribe,
    ) -> None:
        self._store = store
        self._sources = sources
        self._directory = directory
        self._loader = loader
        self._publisher = publisher
        self._clock = clock
        self._settings = settings
        self._unsubscribe = unsubscribe
        # Urgent postings have slots of their own, which are free while bulk ones use the others.
        self._slots = Slots(MAX_SMALL, settings.concurrency)
        self._urgent_slots = Slots(MAX_SMALL, 1)
        self._stopping = asyncio.Event()
        self._slices: set[asyncio.Task[None]] = set()

    def wake(self, priorities: Collection[Priority]) -> None:
        """Check now for due postings of these priorities."""
        self._slots.changed.set()
        if URGENT in priorities:
            self._urgent_slots.changed.set()

    async def drain(self, grace: float) -> None:
        """Start no more pages, and wait up to `grace` seconds for the current ones."""
        self._stopping.set()
        if self._slices:
            await asyncio.wait(self._slices, timeout=grace)

    async def run(self) -> None:
        """Expand postings until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._work(group, self._slots, only_urgent=False))
            group.create_task(self._work(group, self._urgent_slots, only_urgent=True))

    async def _work(self, group: asyncio.TaskGroup, slots: Slots, *, only_urgent: bool) -> None:
        """Run slices while slots are free."""
        while True:
            slots.changed.clear()
            try:
                await self._publisher.ready()
                if claims := await self._claim(slots, only_urgent=only_urgent):
                    group.create_task(self._run_slices(claims))
                    await asyncio.sleep(CLAIM_INTERVAL)
                    continue
            except InfrastructureError as error:
                logger.warning("expansion paused: %s", error)
                await asyncio.sleep(UNAVAILABLE_DELAY)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL):
                    await slots.changed.wait()

    async def run_once(self, limit: int, *, only_urgent: bool = False) -> int:
        """Run a slice of due postings: up to `limit` small ones and lists. Return their number."""
        slots = Slots(limit, limit)
        claims = await self._claim(slots, only_urgent=only_urgent)
        await self._run_slices(claims)
        return len(claims)

    async def _claim(self, slots: Slots, *, only_urgent: bool) -> list[tuple[Claim, Slot]]:
        if self._stopping.is_set() or not (slots.small or slots.lists):
            return []
        claims = await self._store.claim(
            slots.small, slots.lists, lease=LEASE, only_urgent=only_urgent
        )
        return [(claim, Slot(slots, is_list=claim.is_list)) for claim in claims]

    async def _run_slices(self, claims: Sequence[tuple[Claim, Slot]]) -> None:
        """Run slices, each while its lease can be renewed."""
        slices = {
            asyncio.create_task(self._run_slice(claim, slot)): claim for claim, slot in claims
        }
        self._slices.update(slices)
        renewing = asyncio.create_task(self._renew(slices))
        try:
            for result in await asyncio.gather(*slices, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
        finally:
            for task in (renewing, *slices):
                task.cancel()
            self._slices.difference_update(slices)

    async def _run_slice(self, claim: Claim, slot: Slot) -> None:
        try:
            await self._expand(claim, slot)
        except LeaseLostError:
            logger.warning("lease of the posting lost", extra=log_context(claim))
        except InfrastructureError as error:
            # The effect of the last write is unknown. When the lease expires, the next slice
            # repeats the unfinished page.
            logger.warning("expansion slice interrupted: %s", error, extra=log_context(claim))
        finally:
            slot.release()

    async def _renew(self, slices: Mapping[asyncio.Task[None], Claim]) -> None:
        """Renew leases, and cancel the slices that have lost theirs."""
        while True:
            await asyncio.sleep(LEASE / 3)
            running = {task: claim for task, claim in slices.items() if not task.done()}
            try:
                renewed = await self._store.renew(list(running.values()), lease=LEASE)
            except InfrastructureError as error:
                logger.warning("leases not renewed: %s", error)
                continue
            for task, claim in running.items():
                if claim.id not in renewed and not task.done():
                    logger.warning("lease of the posting lost", extra=log_context(claim))
                    task.cancel()

    async def _expand(self, claim: Claim, slot: Slot) -> None:
        """Run a slice, and record how it ended."""
        timing = Timing(claim, self._store, self._clock)
        expansion = ExpansionSlice(
            claim,
            self._store,
            self._publisher,
            slot,
            timing,
            clock=self._clock,
            is_stopping=self._stopping.is_set,
        )
        try:
            timing.check()
            await expansion.check_queues()
            if await self._publish(expansion, slot, timing):
                _report(expansion, "expanded", expansion.counts)
            else:
                await self._release(expansion, timing.delay)
        except NoSlotError:
            await expansion.release(0.0)
        except PostingExpiredError:
            await self._finish(expansion, "expired", "expired before all messages were published")
        except (InvalidPostingError, InvalidTemplateError) as error:
            await self._finish(expansion, "failed", storable(str(error)))
        except SliceDeferredError as error:
            await self._release(expansion, error.delay, error.reason)
        except SourceError as error:
            await self._retry(expansion, storable(str(error)))
        except (InfrastructureError, LeaseLostError):
            raise
        except Exception as error:
            BUGS.labels(POSTINGS).inc()
            logger.exception("bug in expansion", extra=log_context(claim))
            await self._retry(expansion, f"internal error: {type(error).__name__}")

    async def _publish(self, expansion: ExpansionSlice, slot: Slot, timing: Timing) -> bool:
        """Run a slice, and return whether all messages are published."""
        claim = expansion.claim
        composer = await self._composer(claim, timing)
        if isinstance(claim.content, Cohort):
            clients = Clients(self._directory, claim.content, timing.page_size)
            return await expansion.publish_returned(clients, composer) and await expansion.run(
                clients, composer
            )
        receivers, limit = claim.content.receivers, self._settings.max_receivers
        return await expansion.run(UserList(self._sources, receivers, slot, limit), composer)

    async def _release(
        self, expansion: ExpansionSlice, delay: float, reason: str | None = None
    ) -> None:
        """End a slice, and check for due postings when the next one is due."""
        await expansion.release(delay, reason)
        if 0 < delay <= MAX_WAKE_DELAY:
            asyncio.get_running_loop().call_later(delay, self._slots.changed.set)

    async def _retry(self, expansion: ExpansionSlice, reason: str) -> None:
        expansion.failures += 1
        failures = expansion.failures
        if failures > len(RETRY_DELAYS):
            await self._finish(expansion, "failed", f"failed {failures} times: {reason}")
            return
        context = log_context(expansion.claim) | {"attempt": failures}
        logger.warning("expansion slice failed: %s", reason, extra=context)
        await expansion.release(RETRY_DELAYS[failures - 1], reason)

    async def _finish(self, expansion: ExpansionSlice, ended: str, reason: str) -> None:
        counts = await self._store.finish(
            expansion.claim,
            ended,
            reason,
            unpublished_from=expansion.pages if expansion.unfinished else None,
        )
        _report(expansion, ended, counts, reason)

    async def _composer(self, claim: Claim, timing: Timing) -> Composer:
        """Return the composer of a posting. Its data is fetched once.

        Raises:
            InvalidTemplateError, InvalidPostingError, SourceError.
        """
        content = claim.content
        templates = {channel: self._template(claim, channel) for channel in content.delivery_type}
        fetched = claim.fetched_data
        if fetched is None:
            variables = dict.fromkeys(
                name for template in templates.values() for name in template.fetch
            )
            fetched = await self._sources.fetch_data(content.template_context, variables)
            if fetched:
                await self._store.save_fetched_data(claim, fetched)
        context = {**content.template_context, **fetched}
        product = self._settings.product
        of_mailing = isinstance(content, Cohort)
        common: dict[str, Any] = {"posting_id": str(claim.id), "expires_at": claim.expires_at}
        if isinstance(content, Cohort):
            common["mailing_id"] = str(content.mailing_id)
            common["send_until"] = timing.window and timing.window.closes
        return Composer(
            content.mailing_id if isinstance(content, Cohort) else claim.id,
            {
                channel: ChannelTemplate(
                    BoundTemplate(template, channel, context, product),
                    template.kind,
                    # Clients of the directory have no settings of their own.
                    template.is_required or of_mailing,
                )
                for channel, template in templates.items()
            },
            queues_of(claim),
            self._unsubscribe,
            common=common,
            recipient_field="recipient_id" if of_mailing else "user_id",
        )

    def _template(self, claim: Claim, channel: str) -> Template:
        content = claim.content
        if isinstance(content, Cohort) and content.text is not None:
            return parse_text(content.text)
        return self._loader.get(content.template or "", channel)


def _report(
    expansion: ExpansionSlice, ended: str, counts: Mapping[str, int], reason: str | None = None
) -> None:
    metrics.POSTINGS.labels(ended).inc()
    level = logging.INFO if ended == "expanded" else logging.WARNING
    context = log_context(expansion.claim) | {"messages": counts}
    logger.log(level, "posting %s", ended, extra=context | {"reason": reason})
    if ended == "expanded" and not counts["created"]:
        metrics.POSTINGS.labels("done").inc()
        logger.info("posting done", extra=context)
