"""Puts a due event's notification together and publishes it."""

import asyncio

from services.scheduler.messages import (
    NOTIFICATION,
    Dispatch,
    callback_id,
    moment,
    payload,
    send_callback,
)
from services.scheduler.store import Claim
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, UnpublishableError, new_id
from shared.contracts import headers
from shared.contracts.callback import SEND_CALLBACK
from shared.security.encryption import SecretCipher
from shared.security.tickets import Tickets
from shared.topology import CALLBACKS


class NotificationPublisher:
    """By http, an order for the callback service; by amqp, the notification itself.

    `amqp` publishes the latter, on a connection of its own: an exchange that is missing costs a
    channel. None where no exchange is allowed.
    """

    def __init__(
        self, publisher: Publisher, amqp: Publisher | None, seal: SecretCipher, tickets: Tickets
    ) -> None:
        self._publisher = publisher
        self._amqp = amqp
        self._seal = seal
        self._tickets = tickets

    async def ready(self) -> None:
        """Wait until publishing is possible."""
        await self._publisher.ready()

    def publish(self, claim: Claim) -> asyncio.Future[None]:
        """Publish an event's notification; the future ends as that of `Publisher.publish`.

        Raises:
            Unopenable: its secret can't be read.
            UnpublishableError: it can never be published.
        """
        event, content = claim.event, claim.content
        occurrence = event.occurrence if event.rules.rhythm is not None else None
        identifier = callback_id(str(event.id), occurrence)
        stop_at = event.stop_at
        expires_at = event.next_at if stop_at is None else min(event.next_at, stop_at)
        told = Dispatch(
            callback_id=identifier,
            run_at=moment(event.run_at),
            attempt=event.attempts + 1,
            expires_at=moment(expires_at),
            group_key=event.group_key,
            event_key=event.event_key,
            occurrence=occurrence,
        )
        properties = Properties(
            content_type="application/json",
            type=SEND_CALLBACK,
            message_id=new_id(),
            delivery_mode=PERSISTENT,
            app_id="ringback",
        )
        own: dict[str, str | int] = {headers.ID: identifier}
        if claim.traceparent is not None:
            own[headers.TRACEPARENT] = claim.traceparent
        if content.exchange is not None:
            properties.type = NOTIFICATION
            properties.headers = own
            body = payload(content, told).encode()
            if self._amqp is None:
                raise UnpublishableError(
                    f"the exchange {content.exchange!r} is not allowed any more"
                )
            return self._amqp.publish(
                OutgoingMessage(
                    content.routing_key or "", properties, body, exchange=content.exchange
                )
            )
        own[headers.OWNER] = headers.SCHEDULER
        own[headers.DISPATCH] = event.dispatch
        properties.headers = own
        secret = None if claim.secret is None else self._seal.open(claim.secret)
        signs = event.client_id and self._tickets.can_sign
        ticket = self._tickets.own(event.client_id) if signs else None
        body = send_callback(content, told, secret=secret, ticket=ticket)
        return self._publisher.publish(OutgoingMessage(CALLBACKS, properties, body))
