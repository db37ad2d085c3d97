"""Publishes the notifications of due callbacks."""

import asyncio
from datetime import timedelta

from services.scheduler.messages import (
    NOTIFICATION,
    Dispatch,
    callback_id,
    payload,
    rfc_3339,
    send_callback,
)
from services.scheduler.records import Claim
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, UnpublishableError, new_id
from shared.contracts import headers
from shared.contracts.callback import SEND_CALLBACK
from shared.security.encryption import SecretCipher
from shared.security.tickets import TicketIssuer
from shared.skew import ClockSkew
from shared.topology import CALLBACKS, INTERNAL_EXCHANGES


class NotificationPublisher:
    """Publishes a SendCallback for the transport http, and the notification itself for amqp.

    `amqp` has a connection of its own, because publishing to a missing exchange closes the channel.
    It is None if no exchange is allowed. Exchanges of Ringback's own services do not need it.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        publisher: Publisher,
        amqp: Publisher | None,
        cipher: SecretCipher,
        issuer: TicketIssuer | None,
        skew: ClockSkew,
        *,
        ticket_header: str,
    ) -> None:
        self._publisher = publisher
        self._amqp = amqp
        self._cipher = cipher
        self._issuer = issuer
        self._skew = skew
        self._ticket_header = ticket_header

    async def ready(self) -> None:
        """Wait until the broker accepts messages."""
        await self._publisher.ready()

    def publish(self, claim: Claim) -> asyncio.Future[None]:
        """Publish a notification; the future has the result of `Publisher.publish`.

        Raises:
            DecryptionError: no configured key decrypts its request.
            UnpublishableError: it can never be published.
        """
        callback, content = claim.callback, claim.content
        occurrence = callback.occurrence if callback.recurs else None
        identifier = callback_id(str(callback.id), occurrence)
        stop_at = callback.stop_at
        expires_at = claim.now + timedelta(seconds=claim.lease)
        if stop_at is not None:
            expires_at = min(expires_at, stop_at)
        expires_at += timedelta(seconds=self._skew.seconds)
        dispatch = Dispatch(
            callback_id=identifier,
            run_at=rfc_3339(callback.run_at),
            attempt=callback.earlier_attempts + 1,
            expires_at=rfc_3339(expires_at),
            group_key=callback.group_key,
            event_key=callback.event_key,
            occurrence=occurrence,
        )
        properties = Properties(
            content_type="application/json",
            type=SEND_CALLBACK,
            message_id=new_id(),
            delivery_mode=PERSISTENT,
            app_id=headers.APP_ID,
        )
        own_headers: dict[str, str | int] = {headers.ID: identifier}
        if claim.traceparent is not None:
            own_headers[headers.TRACEPARENT] = claim.traceparent
        if content.exchange is not None:
            properties.type = NOTIFICATION
            properties.headers = own_headers
            body = payload(content, dispatch).encode()
            internal = content.exchange in INTERNAL_EXCHANGES
            publisher = self._publisher if internal else self._amqp
            if publisher is None:
                raise UnpublishableError(
                    f"Cannot publish to the exchange {content.exchange!r}: it is not allowed."
                    " Add it to RINGBACK_SCHEDULER_AMQP_EXCHANGES."
                )
            return publisher.publish(
                OutgoingMessage(
                    content.routing_key or "", properties, body, exchange=content.exchange
                )
            )
        own_headers[headers.OWNER] = headers.SCHEDULER
        own_headers[headers.DISPATCH] = callback.dispatch
        properties.headers = own_headers
        message = self._cipher.decrypt(content.message or b"").decode()
        ticket = None
        if callback.client_id and self._issuer:
            ticket = self._ticket_header, self._issuer.own(callback.client_id)
        body = send_callback(message, content, dispatch, ticket=ticket)
        return self._publisher.publish(OutgoingMessage(CALLBACKS, properties, body))
