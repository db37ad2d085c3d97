"""The composition root of delivery: the only place that constructs things."""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic

from services.delivery.domain import retry_policy
from services.delivery.handlers import Courier, HandOver, M, Reporter, Sent
from services.delivery.mail import Letterhead
from services.delivery.settings import DeliverySettings
from services.delivery.sms import Gateway, Tokens, client
from services.delivery.smtp import MailServer
from shared.amqp.consumer import Consumer
from shared.amqp.message import Work
from shared.amqp.publisher import Publisher
from shared.amqp.reading import read
from shared.breakers import telling
from shared.clock import SystemClock
from shared.contracts.messages import SEND_EMAIL, SEND_SMS, SendEmail, SendSms, Way
from shared.lanes import Lanes
from shared.process.command import Service
from shared.process.run import Drain, Process
from shared.settings import load
from shared.topology import MESSAGES_EMAIL, MESSAGES_SMS, topology

logger = logging.getLogger(__name__)
CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class _Route(Generic[M]):
    """One way: where its messages come from, where they go, and how many at a time."""

    way: Way
    queue: str
    models: Mapping[str, type[M]]
    target: str
    widest: int
    hand_over: HandOver[M]


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
            changed=telling(str),
        )
        work: Work[M, Sent] = Work(
            queue=route.queue,
            read=partial(read, models=route.models, max_bytes=settings.max_message_bytes),
            identity=_identity,
            handle=Courier(route.hand_over, lanes, route.target, CLOCK).handle,
            policy=partial(retry_policy, give_up_after=settings.give_up_after),
            report=Reporter(route.way, CLOCK).report,
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
            part=f"{route.way} consumer",
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
    letterhead = Letterhead(process.settings.mail_from)

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


SERVICE = Service("services.delivery", DeliverySettings, start)
