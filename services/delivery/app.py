"""The composition root of delivery: the only module that constructs objects."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from services.delivery.claims import Claims
from services.delivery.domain import Limits, Rate, retry_policy
from services.delivery.handlers import (
    ChannelSender,
    Check,
    Handled,
    MessageSender,
    Reporter,
)
from services.delivery.mime import MimeBuilder
from services.delivery.provider import Provider, TakeTokens
from services.delivery.requests import Requests
from services.delivery.settings import DeliverySettings
from services.delivery.sms import SmsGateway, TokenSource, gateway_client
from services.delivery.smtp import MailServer
from services.delivery.stops import Stops
from services.delivery.store import Store
from shared.amqp.consumer import Consumer
from shared.amqp.fact_sender import FactSender
from shared.amqp.message import ConsumerSpec
from shared.amqp.parsing import parse_message
from shared.amqp.publisher import Publisher
from shared.amqp.rpc_server import RpcServer
from shared.clock import SystemClock
from shared.contracts.messages import RenderedMessage, SendEmail, SendSms
from shared.postgres.migrations import Schema
from shared.postgres.pool import Database
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import CHANNELS, PRIORITIES, SERVICES, Channel, Priority
from shared.resilience.breakers import breaker_observer
from shared.settings import load
from shared.topology import DELIVERY_REQUESTS, MAILINGS_OUTCOMES, topology

logger = logging.getLogger(__name__)
CLOCK = SystemClock()
SCHEMA = Schema.of("services.delivery")
# Seconds for which sent ids are kept, in addition to the longest time that a message is retried.
SENT_RETENTION: Final = 86_400.0


async def start(process: Process) -> None:
    """Construct and start delivery; messages of a channel that is not configured wait."""
    settings = load(DeliverySettings)
    name = f"ringback delivery {socket.gethostname()}"
    queues = [queue for channel in CHANNELS.values() for queue in channel.queues.values()]
    declared = topology(process.settings.queue_type).only(
        (*queues, MAILINGS_OUTCOMES, DELIVERY_REQUESTS)
    )
    database = Database(
        process.settings.database_url or "",  # start-up has checked that it is set
        name=name,
        health=process.health,
        schema=SCHEMA,
    )
    store = Store(database)
    publisher = Publisher(
        process.settings.amqp_url,
        name=f"{name} publisher",
        topology=declared,
        health=process.health,
    )
    facts = FactSender(publisher, url=process.settings.amqp_url, name=name, health=process.health)
    senders = {
        channel: sender
        for channel, factory in SENDERS.items()
        if (sender := await factory(process.stack, settings)) is not None
    }
    providers = {
        channel: Provider(
            sender.target,
            concurrency=sender.limits.concurrency,
            take_tokens=_take_tokens(store, sender),
            max_failures=settings.breaker_failures,
            clock=asyncio.get_running_loop().time,
            observe=breaker_observer(str),
        )
        for channel, sender in senders.items()
    }
    claims = Claims(
        store,
        [sender.target for sender in senders.values()],
        retention=settings.give_up_after + SENT_RETENTION,
        monotonic=CLOCK.monotonic,
        observe=partial(_divide, list(providers.values())),
    )

    stops = Stops(store, CLOCK.monotonic)
    server = RpcServer(
        DELIVERY_REQUESTS,
        Requests(store).handlers(),
        url=process.settings.amqp_url,
        name=f"{name} requests",
        topology=declared,
        prefetch=settings.prefetch,
        health=process.health,
    )

    def consumer(channel: Channel, priority: Priority) -> Consumer[Any, Handled]:
        provider = providers[channel.name]
        spec: ConsumerSpec[Any, Handled] = ConsumerSpec(
            queue=channel.queues[priority],
            parse=partial(
                parse_message,
                models={channel.type: channel.contract},
                max_bytes=settings.max_message_bytes,
            ),
            identity=_identity,
            handle=partial(handlers[channel.name].handle, priority),
            policy=partial(retry_policy, give_up_after=settings.give_up_after),
            report=Reporter(channel.name, CLOCK).report,
            send_facts=facts.send,
            drain=provider.drain,
        )
        return Consumer(
            spec,
            url=process.settings.amqp_url,
            name=f"{name} {spec.queue}",
            topology=declared,
            publisher=publisher,
            prefetch=settings.prefetch,
            clock=CLOCK,
            health=process.health,
            part=f"{channel.name} {priority} consumer",
        )

    handlers = {
        channel: MessageSender(channel, sender, providers[channel], claims, stops, CLOCK)
        for channel, sender in senders.items()
    }
    # Each queue has its own connection, so that a slow channel does not affect the others, and bulk
    # messages do not delay urgent ones.
    consumers = [
        consumer(CHANNELS[channel], priority) for channel in senders for priority in PRIORITIES
    ]
    for part in (database, publisher, facts, claims, stops, server):
        process.run(part.run())
    for provider in providers.values():
        process.run(provider.run())
    for running in consumers:
        process.run(running.run())

    async def drain(grace: float) -> None:
        await asyncio.gather(*(running.drain(grace) for running in consumers))
        await claims.close()

    process.on_drain(drain)
    process.on_drain(server.drain)
    process.on_drain(facts.drain)


def _take_tokens(store: Store, sender: ChannelSender[Any]) -> TakeTokens | None:
    rate = sender.limits.rate
    return None if rate is None else partial(store.take_tokens, sender.target, rate)


def _divide(providers: Iterable[Provider], processes: Mapping[str, int]) -> None:
    """Divide the messages in flight to each provider among its processes."""
    for provider in providers:
        provider.divide(processes.get(provider.target, 1))


def _rate(per_second: float | None, burst: float) -> Rate | None:
    return None if per_second is None else Rate(per_second, burst)


async def _email(
    stack: AsyncExitStack, settings: DeliverySettings
) -> ChannelSender[SendEmail] | None:
    url = settings.smtp_url
    if url is None:
        logger.warning("RINGBACK_SMTP_URL is not set: messages wait in messages.email")
        return None
    server = MailServer(
        url.get_secret_value(), tls=settings.smtp_tls or "offered", timeout=settings.smtp_timeout
    )
    stack.push_async_callback(server.close)
    mime = MimeBuilder(settings.mail_from)
    limits = Limits(settings.smtp_connections, _rate(settings.smtp_rate, settings.smtp_burst))

    async def send(message_id: str, command: SendEmail, check: Check) -> int:
        content = mime.build(command, message_id, now=CLOCK.now())
        return await server.send(mime.sender, command.to, content, check)

    return ChannelSender(server.origin, limits, send)


async def _sms(stack: AsyncExitStack, settings: DeliverySettings) -> ChannelSender[SendSms] | None:
    url, key = settings.sms_url, settings.sms_key
    if url is None or key is None:  # settings with only one of them are invalid
        logger.warning("RINGBACK_SMS_URL is not set: messages wait in messages.sms")
        return None
    client = await stack.enter_async_context(gateway_client(timeout=settings.sms_timeout))
    tokens = TokenSource(key.get_secret_value(), CLOCK)
    gateway = SmsGateway(url, client, tokens, CLOCK, timeout=settings.sms_timeout)
    limits = Limits(settings.sms_requests, _rate(settings.sms_rate, settings.sms_burst))
    return ChannelSender(gateway.origin, limits, gateway.send)


# The sender of each channel; a factory returns None if its channel is not configured.
SENDERS: Final[
    Mapping[str, Callable[[AsyncExitStack, DeliverySettings], Awaitable[ChannelSender[Any] | None]]]
] = {"email": _email, "sms": _sms}


def _identity(command: RenderedMessage) -> str | None:
    return command.id


SERVICE = Service(SERVICES["delivery"], (DeliverySettings,), start)
