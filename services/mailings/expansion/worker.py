"""Goes through the receivers of postings, a turn of each at a time.

A turn takes some pages, or about a second; then the posting goes to the back of the line. A page
is fetched while the one before it is given out; it is written, then published, then the
checkpoint is set. A turn that ends otherwise than by itself leaves `held` behind: the next turn
takes back what was written of the unfinished page and does it anew, under the same ids.
"""

import asyncio
import logging
from typing import Final

from services.mailings import metrics
from services.mailings.domain import InvalidPostingError, stored
from services.mailings.expansion.publisher import PostingExpiredError, ThrottledPublisher
from services.mailings.expansion.slice import LEASE, ExpansionSlice, SliceDeferredError, about
from services.mailings.expansion.sources import LARGEST_CONTEXT, SourceError, Sources
from services.mailings.messages import Composer
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

# Seconds between two looks for postings whose turn has come.
POLL: Final = 1.0
# Seconds until a posting is looked at again whose queue is full.
FULL: Final = 0.5
# Seconds between the tries of a source that is in trouble: with time-outs, some ten minutes.
WAITS: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
# Seconds to wait when broker or database are lost.
AGAIN: Final = 1.0


class ExpansionWorker:
    """Gives out the messages of postings; several processes may do so side by side."""

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        store: Store,
        sources: Sources,
        library: TemplateLoader,
        outlet: ThrottledPublisher,
        *,
        clock: Clock,
        settings: MailingsSettings,
    ) -> None:
        self._store = store
        self._sources = sources
        self._library = library
        self._outlet = outlet
        self._clock = clock
        self._settings = settings
        self._some = asyncio.Event()
        self._stopping = asyncio.Event()
        self._turns: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """There is a new posting."""
        self._some.set()

    async def drain(self, grace: float) -> None:
        """Begin no page more, and finish those that were begun within `grace` seconds."""
        self._stopping.set()
        if self._turns:
            await asyncio.wait(self._turns, timeout=grace)

    async def run(self) -> None:
        """Expand until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.concurrency):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            try:
                await self._outlet.ready()
                if await self.run_once(1):
                    continue
            except InfrastructureError as error:
                logger.warning("expansion waits: %s", error)
                await asyncio.sleep(AGAIN)
                continue
            try:
                async with asyncio.timeout(POLL):
                    await self._some.wait()
                self._some.clear()
            except TimeoutError:
                pass

    async def run_once(self, limit: int) -> int:
        """A turn of each of the postings whose turn is next, at most `limit`; how many it were."""
        if self._stopping.is_set():
            return 0
        claims = await self._store.claim(limit, lease=LEASE)
        turns = [asyncio.create_task(self._take(claim)) for claim in claims]
        self._turns.update(turns)
        try:
            await asyncio.gather(*turns)
        finally:
            for turn in turns:
                turn.cancel()
            self._turns.difference_update(turns)
        return len(claims)

    async def _take(self, claim: Claim) -> None:
        """A turn of one posting, while its lease can be kept."""
        try:
            await run_until_first_ends(self._ended(claim), self._keep(claim))
        except LeaseLostError:
            logger.warning("another process has taken the posting over", extra=about(claim))
        except InfrastructureError as error:
            # Whether the last write took effect is unknown: the lease runs out, and the next turn
            # takes back what was not finished.
            logger.warning("a turn was broken off: %s", error, extra=about(claim))

    async def _keep(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            try:
                if not await self._store.keep(claim, lease=LEASE):
                    raise LeaseLostError
            except InfrastructureError as error:
                logger.warning("the lease is not renewed: %s", error, extra=about(claim))

    async def _ended(self, claim: Claim) -> None:
        """Take the turn, and write down how it ended."""
        turn = ExpansionSlice(
            claim,
            self._store,
            self._sources,
            self._outlet,
            clock=self._clock,
            most_receivers=self._settings.most_receivers,
            stopping=self._stopping.is_set,
        )
        try:
            self._outlet.check_time(claim.expires_at)
            await turn.check_room()
            if await turn.run(await self._composer(claim)):
                await self._finish(turn, "expanded")
            else:
                await turn.put_off(0.0)
        except PostingExpiredError:
            await self._finish(
                turn, "expired", "expired before all its receivers were gone through"
            )
        except (InvalidPostingError, InvalidTemplateError) as error:
            await self._finish(turn, "failed", stored(str(error)))
        except SliceDeferredError as full:
            await turn.put_off(FULL, str(full))
        except SourceError as error:
            await self._trouble(turn, stored(str(error)))
        except (InfrastructureError, LeaseLostError):
            raise
        except Exception as error:
            BUGS.labels(POSTINGS).inc()
            logger.exception("bug in expansion", extra=about(claim))
            await self._trouble(turn, f"internal error: {type(error).__name__}")

    async def _trouble(self, turn: ExpansionSlice, reason: str) -> None:
        turn.tries += 1
        if turn.tries > len(WAITS):
            await self._finish(turn, "failed", f"gave up after {turn.tries} tries: {reason}")
            return
        context = about(turn.claim) | {"attempt": turn.tries}
        logger.warning("a posting waits: %s", reason, extra=context)
        await turn.put_off(WAITS[turn.tries - 1], reason)

    async def _finish(self, turn: ExpansionSlice, ended: str, reason: str | None = None) -> None:
        claim = turn.claim
        counts = await self._store.finish(
            claim, ended, reason, unfinished=turn.page if turn.held else None
        )
        metrics.POSTINGS.labels(ended).inc()
        log = logger.info if ended == "expanded" else logger.warning
        log("posting %s", ended, extra=about(claim) | {"reason": reason, "messages": counts})
        if ended == "expanded" and not counts["created"]:
            metrics.POSTINGS.labels("done").inc()
            logger.info("posting done", extra=about(claim) | {"messages": counts})

    async def _composer(self, claim: Claim) -> Composer:
        """What writes the messages; its context is fetched once a posting.

        Raises:
            InvalidTemplateError, InvalidPostingError, SourceError.
        """
        posting = claim.posting
        templates = {
            channel: self._library.get(posting.template, channel)
            for channel in posting.delivery_type
        }
        fetched = claim.context
        if fetched is None:
            wanted = dict.fromkeys(name for each in templates.values() for name in each.fetch)
            fetched = await self._sources.context(posting.template_context, wanted)
            if fetched:
                if len(json_text(fetched)) > LARGEST_CONTEXT:
                    raise InvalidPostingError(
                        f"what the template fetches is larger than {LARGEST_CONTEXT} characters"
                    )
                await self._store.remember(claim, fetched)
        context = {**posting.template_context, **fetched}
        product = self._settings.product
        return Composer(
            claim.id,
            claim.expires_at,
            {
                channel: (BoundTemplate(template, channel, context, product), template.kind)
                for channel, template in templates.items()
            },
            self._settings.unsubscribe_url,
        )
