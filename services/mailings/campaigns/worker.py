"""Attends to mailings: starts those that are due, stops, finishes and settles others.

Each step is idempotent, so several processes may attend to the same mailing. A mailing that a step
could not be finished for stays pending in the database, and the step is repeated.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final
from uuid import UUID

from services.mailings.campaigns.cohorts import with_time_zones
from services.mailings.campaigns.partners import Partners
from services.mailings.campaigns.records import StoredMailing
from services.mailings.campaigns.store import Campaigns
from services.mailings.records import MessageChange
from services.mailings.store import Store
from shared.amqp.consumer import BUGS
from shared.contracts.mailings import MailingStatus
from shared.contracts.message_facts import ReasonCode
from shared.contracts.posting_requests import MessageState
from shared.errors import InfrastructureError
from shared.topology import MAILINGS_STARTS

logger = logging.getLogger(__name__)

# Seconds between two checks for pending mailings.
POLL_INTERVAL: Final = 1.0
# Seconds after which a mailing starts without the scheduler's notification.
OVERDUE: Final = 5.0
# Mailings in one round. All may wait at the same time for a service that does not respond.
MAX_MAILINGS: Final = 100
# Mailings that use the database at a time.
MAX_CONCURRENT: Final = 10
# Those whose clients or messages are read at a time. Starts and stops do not wait for them.
MAX_SCANS: Final = 2
# Messages settled in one transaction.
BATCH_SIZE: Final = 1000
_FIRST: Final = UUID(int=0), UUID(int=0)


class CampaignWorker:
    """Attends to the mailings that have something to do.

    `started` is called after postings of a mailing have become due.
    """

    def __init__(
        self,
        campaigns: Campaigns,
        store: Store,
        partners: Partners,
        *,
        started: Callable[[], None],
    ) -> None:
        self._campaigns = campaigns
        self._store = store
        self._partners = partners
        self._started = started
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._scans = asyncio.Semaphore(MAX_SCANS)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Check now for pending mailings."""
        self._woken.set()

    async def run(self) -> None:
        """Attend to mailings until cancelled."""
        while True:
            self._woken.clear()
            try:
                await self.run_once(MAX_MAILINGS)
            except InfrastructureError as error:
                logger.warning("mailings not attended to: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL):
                    await self._woken.wait()

    async def run_once(self, limit: int) -> int:
        """Attend to up to `limit` pending mailings, and return their number."""
        pending = await self._campaigns.pending(OVERDUE, limit)
        async with asyncio.TaskGroup() as group:
            for id_ in pending:
                group.create_task(self._attend(id_))
        return len(pending)

    async def _attend(self, id_: UUID) -> None:
        context = {"mailing_id": str(id_)}
        try:
            await self.attend(id_)
        except InfrastructureError as error:
            logger.warning("mailing not attended to: %s", error, extra=context)
        except Exception:
            # The other mailings continue.
            BUGS.labels(MAILINGS_STARTS).inc()
            logger.exception("bug in attending to a mailing", extra=context)

    async def start(self, id_: UUID) -> None:
        """Start a scheduled mailing if it is due.

        Raises:
            StoreConnectionLostError: repeat it later.
        """
        started = await with_time_zones(
            partial(self._campaigns.start_if_due, id_),
            self._campaigns.time_zones,
            changes=self._slots,
            reads=self._scans,
        )
        if started:
            log("started", started)
            self._started()

    async def attend(self, id_: UUID) -> None:
        """Do what a mailing needs now; nothing if it does not exist.

        Raises:
            InfrastructureError: the rest follows later.
        """
        await self.start(id_)
        async with self._slots:
            if finished := await self._campaigns.finish_if_over(id_):
                log("finished", finished)
            mailing = await self._campaigns.get(id_)
        if mailing is None:
            return
        if mailing.status is MailingStatus.SCHEDULED and not mailing.is_start_requested:
            await self._partners.request_start(mailing)
            await self._campaigns.start_requested(mailing)
        await self.confirm_stop(mailing)
        if mailing.closing:
            async with self._scans:
                await self._close(mailing)

    async def confirm_stop(self, mailing: StoredMailing) -> None:
        """Have delivery confirm the latest stop of a mailing, or its end, if it has not yet.

        Raises:
            InfrastructureError: it is unknown whether delivery has stopped.
        """
        if not mailing.is_stop_confirmed:
            await self._partners.request_stop(mailing)
            await self._campaigns.stop_confirmed(mailing)
            self._started()

    async def _close(self, mailing: StoredMailing) -> None:
        """Settle the messages that will not be sent any more, and count clients without one.

        A fact that a message was sent wins.
        """
        cancelled = mailing.status is MailingStatus.CANCELLED
        status = MessageState.CANCELLED if cancelled else MessageState.EXPIRED
        code = ReasonCode.STOPPED if cancelled else ReasonCode.EXPIRED
        reason = "the mailing was cancelled" if cancelled else "the mailing has ended"
        after = _FIRST
        while found := await self._campaigns.messages(
            mailing.id, after, MessageState.CREATED, BATCH_SIZE
        ):
            await self._store.settle(
                [
                    MessageChange(posting, message.id, status, code, reason)
                    for posting, message in found
                ]
            )
            posting, message = found[-1]
            after = posting, message.id
        await self._campaigns.count_not_reached(mailing.id)
        await self._campaigns.closed(mailing.id)


def log(event: str, mailing: StoredMailing) -> None:
    """Log an event in the life of a mailing, such as `started`."""
    context = {
        "mailing_id": str(mailing.id),
        "client_id": mailing.client_id or None,
        "status": mailing.status,
    }
    logger.info("mailing %s", event, extra=context)
