"""The composition root of delivery: the only module that constructs objects."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from services.delivery.domain import retry_policy
from services.delivery.handlers import ChannelSender, MessageSender, Reporter, Sent
from services.delivery.mime import MimeBuilder
from services.delivery.settings import DeliverySettings
from services.delivery.sms import SmsGateway, TokenSource, gateway_client
from services.delivery.smtp import MailServer
from shared.amqp.consumer import Consumer
from shared.amqp.message import ConsumerSpec
from shared.amqp.parsing import parse_message
from shared.amqp.publisher import Publisher
from shared.clock import SystemClock
from shared.contracts.messages import RenderedMessage, SendEmail, SendSms
from shared.process.command import Service
from shared.process.run import Drain, Process
from shared.registry import CHANNELS, SERVICES
from shared.resilience.breakers import breaker_observer
from shared.resilience.lanes import Lanes
from shared.settings import load
from shared.topology import topology

logger = logging.getLogger(__name__)
CLOCK = SystemClock()


async def start(process: Process) -> None:
    """Construct and start delivery; messages of a channel that is not configured wait."""
    settings = load(DeliverySettings)
    declared = topology(process.settings.queue_type).only(
        channel.queue for channel in CHANNELS.values()
    )
    name = f"ringback delivery {socket.gethostname()}"
    publisher = Publisher(
        process.settings.amqp_url,
        name=f"{name} publisher",
        topology=declared,
        health=process.health,
    )
    process.run(publisher.run())
    drains: list[Drain] = []
    for channel in CHANNELS.values():
        sender = await SENDERS[channel.name](process.stack, settings)
        if sender is None:
            continue
        # Each channel has its own lanes and connection, so that a slow one does not affect others.
        lanes = Lanes(
            max_in_flight=sender.concurrency,
            # Lanes limit unproven targets to half of the slots. Here, the only target may use the
            # whole prefetch window.
            prefetch=2 * settings.prefetch,
            max_failures=settings.breaker_failures,
            clock=asyncio.get_running_loop().time,
            observe=breaker_observer(str),
        )
        spec: ConsumerSpec[Any, Sent] = ConsumerSpec(
            queue=channel.queue,
            parse=partial(
                parse_message,
                models={channel.type: channel.contract},
                max_bytes=settings.max_message_bytes,
            ),
            identity=_identity,
            handle=MessageSender(sender, lanes, CLOCK).handle,
            policy=partial(retry_policy, give_up_after=settings.give_up_after),
            report=Reporter(channel.name, CLOCK).report,
            drain=lanes.drain,
        )
        consumer = Consumer(
            spec,
            url=process.settings.amqp_url,
            name=f"{name} {channel.queue}",
            topology=declared,
            publisher=publisher,
            prefetch=settings.prefetch,
            clock=CLOCK,
            health=process.health,
            part=f"{channel.name} consumer",
        )
        process.run(lanes.run())
        process.run(consumer.run())
        drains.append(consumer.drain)

    async def drain(grace: float) -> None:
        await asyncio.gather(*(drain_one(grace) for drain_one in drains))

    process.on_drain(drain)


async def _email(
    stack: AsyncExitStack, settings: DeliverySettings
) -> ChannelSender[SendEmail] | None:
    url = settings.smtp_url
    if url is None:
        logger.warning("RINGBACK_SMTP_URL is not set: messages wait in messages.email")
        return None
    server = MailServer(
        url.get_secret_value(), tls=settings.smtp_tls, timeout=settings.smtp_timeout
    )
    stack.push_async_callback(server.close)
    mime = MimeBuilder(settings.mail_from)

    async def send(message_id: str, command: SendEmail, check: Callable[[], None]) -> None:
        content = mime.build(command, message_id, now=CLOCK.now())
        await server.send(mime.sender, command.to, content, check)

    return ChannelSender(server.origin, settings.smtp_connections, send)


async def _sms(stack: AsyncExitStack, settings: DeliverySettings) -> ChannelSender[SendSms] | None:
    url, key = settings.sms_url, settings.sms_key
    if url is None or key is None:  # settings with only one of them are invalid
        logger.warning("RINGBACK_SMS_URL is not set: messages wait in messages.sms")
        return None
    client = await stack.enter_async_context(gateway_client(timeout=settings.sms_timeout))
    tokens = TokenSource(key.get_secret_value(), CLOCK)
    gateway = SmsGateway(url, client, tokens, CLOCK, timeout=settings.sms_timeout)
    return ChannelSender(gateway.origin, settings.sms_requests, gateway.send)


# The sender of each channel; a factory returns None if its channel is not configured.
SENDERS: Final[
    Mapping[str, Callable[[AsyncExitStack, DeliverySettings], Awaitable[ChannelSender[Any] | None]]]
] = {"email": _email, "sms": _sms}


def _identity(command: RenderedMessage) -> str | None:
    return command.id


SERVICE = Service(SERVICES["delivery"], (DeliverySettings,), start)
