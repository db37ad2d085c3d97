"""The composition root of delivery: the only place that constructs things."""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic

from services.delivery.domain import retry_policy
from services.delivery.handlers import M, MessageSender, Reporter, SendMessage, Sent
from services.delivery.mime import MimeBuilder
from services.delivery.settings import DeliverySettings
from services.delivery.sms import Gateway, Tokens, client
from services.delivery.smtp import MailServer
from shared.amqp.consumer import Consumer
from shared.amqp.message import ConsumerSpec
from shared.amqp.parsing import parse_message
from shared.amqp.publisher import Publisher
from shared.clock import SystemClock
from shared.contracts.messages import SEND_EMAIL, SEND_SMS, Channel, SendEmail, SendSms
from shared.process.command import Service
from shared.process.run import Drain, Process
from shared.registry import SERVICES
from shared.resilience.breakers import breaker_observer
from shared.resilience.lanes import Lanes
from shared.settings import load
from shared.topology import MESSAGES_EMAIL, MESSAGES_SMS, topology

logger = logging.getLogger(__name__)
CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class _Route(Generic[M]):
    """One way: where its messages come from, where they go, and how many at a time."""

    channel: Channel
    queue: str
    models: Mapping[str, type[M]]
    target: str
    widest: int
    hand_over: SendMessage[M]


async def start(process: Process) -> None:
    """Put delivery together and set it going; messages of a way that is not configured wait."""
    settings = load(DeliverySettings, "delivery")
    tables = topology(process.settings.queue_type).only((MESSAGES_EMAIL, MESSAGES_SMS))
    name = f"ringback delivery {socket.gethostname()}"
    publisher = Publisher(
        process.settings.amqp_url, name=f"{name} publisher", topology=tables, health=process.health
    )
    process.run(publisher.run())
    drains: list[Drain] = []

    def consume(route: _Route[M]) -> None:
        # Lanes and a connection of its own: trouble with one way costs the other nothing.
        lanes = Lanes(
            widest=route.widest,
            # Targets that have not answered yet may hold half of it; here there is but one target.
            slots=2 * settings.prefetch,
            failures=settings.breaker_failures,
            clock=asyncio.get_running_loop().time,
            changed=breaker_observer(str),
        )
        work: ConsumerSpec[M, Sent] = ConsumerSpec(
            queue=route.queue,
            read=partial(parse_message, models=route.models, max_bytes=settings.max_message_bytes),
            identity=_identity,
            handle=MessageSender(route.hand_over, lanes, route.target, CLOCK).handle,
            policy=partial(retry_policy, give_up_after=settings.give_up_after),
            report=Reporter(route.channel, CLOCK).report,
            drain=lanes.drain,
        )
        consumer = Consumer(
            work,
            url=process.settings.amqp_url,
            name=f"{name} {route.queue}",
            topology=tables,
            publisher=publisher,
            prefetch=settings.prefetch,
            clock=CLOCK,
            health=process.health,
            part=f"{route.channel} consumer",
        )
        process.run(lanes.run())
        process.run(consumer.run())
        drains.append(consumer.drain)

    if email := await _email(process, settings):
        consume(email)
    if sms := await _sms(process, settings):
        consume(sms)

    async def drain(grace: float) -> None:
        await asyncio.gather(*(each(grace) for each in drains))

    process.on_drain(drain)


async def _email(process: Process, settings: DeliverySettings) -> _Route[SendEmail] | None:
    url = process.settings.smtp_url
    if url is None:
        logger.warning("RINGBACK_SMTP_URL is not set: e-mails wait in %s", MESSAGES_EMAIL)
        return None
    server = MailServer(
        url.get_secret_value(), tls=settings.smtp_tls, timeout=settings.smtp_timeout
    )
    process.stack.push_async_callback(server.close)
    letterhead = MimeBuilder(process.settings.mail_from)

    async def hand_over(message_id: str, order: SendEmail, check: Callable[[], None]) -> None:
        content = letterhead.written(order, message_id, now=CLOCK.now())
        await server.send(letterhead.sender, order.to, content, check)

    return _Route(
        "email",
        MESSAGES_EMAIL,
        {SEND_EMAIL: SendEmail},
        server.origin,
        settings.smtp_connections,
        hand_over,
    )


async def _sms(process: Process, settings: DeliverySettings) -> _Route[SendSms] | None:
    url, key = process.settings.sms_url, process.settings.sms_key
    if url is None or key is None:  # the one without the other is refused before
        logger.warning("RINGBACK_SMS_URL is not set: SMS wait in %s", MESSAGES_SMS)
        return None
    http = await process.stack.enter_async_context(client(timeout=settings.sms_timeout))
    tokens = Tokens(key.get_secret_value(), CLOCK)
    gateway = Gateway(url, http, tokens, CLOCK, timeout=settings.sms_timeout)
    return _Route(
        "sms",
        MESSAGES_SMS,
        {SEND_SMS: SendSms},
        gateway.origin,
        settings.sms_requests,
        gateway.send,
    )


def _identity(order: SendEmail | SendSms) -> str | None:
    return order.id


SERVICE = Service(SERVICES["delivery"], DeliverySettings, start)
