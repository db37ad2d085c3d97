"""Dispatches due deliveries: claims them under a lease and publishes them with confirms."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

from services.subscriptions import metrics
from services.subscriptions.deliveries.claims import DISPATCH_LEASE, Claims, Lease
from services.subscriptions.deliveries.messages import Claim, send_callback
from services.subscriptions.deliveries.settlement import Settler
from shared.amqp.backpressure import COUNT_INTERVAL, CallbackQueue
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, UnpublishableError, new_id
from shared.contracts import headers
from shared.contracts.callback import SEND_CALLBACK
from shared.contracts.endpoints import EndpointStatus
from shared.contracts.facts import CallbackDispatchFailed
from shared.errors import InfrastructureError
from shared.postgres.leases import LeaseExtender
from shared.postgres.pool import StoreConnectionLostError
from shared.security.encryption import DecryptionError, SecretCipher
from shared.skew import ClockSkew
from shared.topology import CALLBACKS

logger = logging.getLogger(__name__)

# Deliveries in one claim.
MAX_BATCH: Final = 500
# The first claim is small, because the sizes of the deliveries are not known yet.
FIRST_BATCH: Final = 50
# Bytes of the contents in one claim.
MAX_BATCH_BYTES: Final = 16 << 20
# Seconds between two claims, unless one was full, so that deliveries collect.
CLAIM_INTERVAL: Final = 0.004
# Seconds until the next claim at the latest: other processes add deliveries, too.
POLL_INTERVAL: Final = 1.0
# Seconds until a delivery that the broker did not confirm is due again.
RETRY_DELAY: Final = 1.0
# Seconds until a delivery that cannot be decrypted is due again. Its key may be configured by then.
DECRYPTION_DELAY: Final = 60.0


class NoContentError(Exception):
    """Retention has deleted what the delivery sends."""


class Dispatcher:
    """Dispatches due deliveries until cancelled. Several processes share the work."""

    def __init__(  # noqa: PLR0913, PLR0917 - the composition root names each
        self,
        claims: Claims,
        publisher: Publisher,
        cipher: SecretCipher,
        settler: Settler,
        leases: LeaseExtender[Lease],
        queue: CallbackQueue,
        skew: ClockSkew,
        wake: asyncio.Event,
    ) -> None:
        self._claims = claims
        self._publisher = publisher
        self._cipher = cipher
        self._settler = settler
        self._leases = leases
        self._queue = queue
        self._skew = skew
        self._wake = wake  # deliveries may have become due
        self._batch = FIRST_BATCH
        self._draining = False
        self._working = asyncio.Lock()  # a drain waits for the claim in progress

    async def ready(self) -> None:
        """Wait until the claim in progress ends, because due deliveries go before leases."""
        async with self._working:
            pass

    async def drain(self, grace: float) -> None:
        """Stop claiming, and wait at most `grace` seconds for confirms."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace), self._working:
                pass

    async def run(self) -> None:
        """Claim and dispatch until cancelled."""
        while not self._draining:
            self._wake.clear()
            await self._publisher.ready()
            try:
                if not (room := await self._queue.room()):
                    await asyncio.sleep(COUNT_INTERVAL)
                    continue
                limit = min(self._batch, room)
                async with self._working:
                    full = not self._draining and await self.run_once(limit) == limit
                if not full:
                    await self._sleep()
            except StoreConnectionLostError as error:
                logger.warning("due deliveries not dispatched, retry scheduled: %s", error)
                await asyncio.sleep(RETRY_DELAY)
        await asyncio.Event().wait()  # drained: wait until the process cancels this task

    async def _sleep(self) -> None:
        due = await self._claims.next_due()
        delay = POLL_INTERVAL if due is None else min(POLL_INTERVAL, due)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(delay, CLAIM_INTERVAL)):
                await self._wake.wait()
                await asyncio.sleep(CLAIM_INTERVAL)

    async def run_once(self, limit: int) -> int:
        """Claim at most `limit` due deliveries, publish them, and return their number.

        Raises:
            StoreConnectionLostError: they are dispatched again when the claim expires.
        """
        claims = await self._claims.claim(limit)
        if not claims:
            return 0
        size = sum(len(claim.content or "") for claim in claims) / len(claims)
        self._batch = max(1, min(MAX_BATCH, int(MAX_BATCH_BYTES / (size + 1))))
        active = [claim for claim in claims if claim.status == EndpointStatus.ACTIVE]
        if held := [_lease(claim) for claim in claims if claim.status != EndpointStatus.ACTIVE]:
            await self._claims.hold(held)
        await self._publish(active)
        return len(claims)

    async def _publish(self, claims: Sequence[Claim]) -> None:
        """Publish claims, wait for the confirms, and release claims without one."""
        self._queue.publishing(len(claims))
        published: list[Lease] = []
        results: list[asyncio.Future[None]] = []
        unpublishable: list[tuple[Claim, str]] = []
        for claim in claims:
            try:
                results.append(self._publish_one(claim))
            except DecryptionError as error:
                await self._claims.release([_lease(claim)], DECRYPTION_DELAY, str(error))
            except (UnpublishableError, NoContentError) as error:
                unpublishable.append((claim, str(error)))
            else:
                published.append(_lease(claim))
        outcomes = await asyncio.gather(*results, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, InfrastructureError):
                raise outcome
        confirmed = [lease for lease, each in zip(published, outcomes, strict=True) if each is None]
        self._leases.add(confirmed)
        metrics.CONFIRMED.inc(len(confirmed))
        if unconfirmed := [
            lease for lease, each in zip(published, outcomes, strict=True) if each is not None
        ]:
            metrics.UNPUBLISHED.inc(len(unconfirmed))
            await self._claims.release(unconfirmed, RETRY_DELAY, None)
        if unpublishable:
            await self._settler.settle([_failed(*each) for each in unpublishable])

    def _publish_one(self, claim: Claim) -> asyncio.Future[None]:
        expires_at = claim.now + timedelta(seconds=DISPATCH_LEASE + self._skew.seconds)
        properties = Properties(
            content_type="application/json",
            type=SEND_CALLBACK,
            message_id=new_id(),
            delivery_mode=PERSISTENT,
            app_id=headers.APP_ID,
            headers={
                headers.ID: claim.webhook_id,
                headers.OWNER: headers.SUBSCRIPTIONS,
                headers.DISPATCH: claim.dispatch,
                headers.REFERENCE: str(claim.id),
            },
        )
        if claim.content is None:
            raise NoContentError("its event or message is no longer stored")
        body = send_callback(claim, self._cipher, expires_at)
        return self._publisher.publish(OutgoingMessage(CALLBACKS, properties, body))


def _lease(claim: Claim) -> Lease:
    return Lease(claim.id, claim.dispatch)


def _failed(claim: Claim, reason: str) -> CallbackDispatchFailed:
    """Return the fact that a claim can never be published."""
    return CallbackDispatchFailed(
        fact_id="",
        at=claim.now,
        callback_id=claim.webhook_id,
        client_id=claim.client_id,
        target=None,
        attempt=0,
        dispatch=claim.dispatch,
        reference=str(claim.id),
        reason=reason,
        final=True,
    )
