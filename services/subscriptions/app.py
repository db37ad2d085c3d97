"""The composition root of subscriptions: the only module that constructs objects."""

import asyncio
import logging
import socket
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from services.subscriptions import metrics
from services.subscriptions.deliveries import settlement
from services.subscriptions.deliveries import store as deliveries
from services.subscriptions.deliveries.claims import Claims
from services.subscriptions.deliveries.dispatch import Dispatcher
from services.subscriptions.deliveries.registrations import Registrations
from services.subscriptions.deliveries.requests import RegistrationRequests
from services.subscriptions.deliveries.settlement import Settler
from services.subscriptions.endpoints.message_requests import EndpointMessageRequests
from services.subscriptions.endpoints.messages import EndpointMessages
from services.subscriptions.endpoints.replaying import Replays
from services.subscriptions.endpoints.requests import MAX_CONCURRENT, EndpointRequests
from services.subscriptions.endpoints.store import Endpoints
from services.subscriptions.endpoints.sweeping import Sweeper
from services.subscriptions.endpoints.worker import EndpointWorker
from services.subscriptions.messenger import handlers
from services.subscriptions.messenger.appending import Appender
from services.subscriptions.messenger.handlers import Handler
from services.subscriptions.messenger.passwords import Passwords
from services.subscriptions.messenger.requests import MessengerRequests
from services.subscriptions.messenger.store import Messenger
from services.subscriptions.messenger.wakes import WakePublisher
from services.subscriptions.retention import Retention
from services.subscriptions.settings import SubscriptionsSettings
from shared.amqp.backpressure import CallbackQueue
from shared.amqp.consumer import Consumer
from shared.amqp.depth import QueueDepth
from shared.amqp.fact_sender import FactSender
from shared.amqp.facts import parse_facts
from shared.amqp.message import ConsumerSpec
from shared.amqp.publisher import Publisher
from shared.amqp.rpc_server import RpcServer
from shared.clock import SystemClock
from shared.contracts.facts import FACT_TYPES, Facts
from shared.postgres.leases import LeaseExtender
from shared.postgres.migrations import Schema
from shared.postgres.pool import Database
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import SERVICES
from shared.security.encryption import SecretCipher
from shared.security.settings import SecuritySettings
from shared.settings import load
from shared.skew import ClockSkew
from shared.topology import (
    CALLBACKS,
    SUBSCRIPTIONS_OUTCOMES,
    SUBSCRIPTIONS_REQUESTS,
    USER_EVENTS,
    topology,
)

logger = logging.getLogger(__name__)

SCHEMA = Schema.of("services.subscriptions")


async def start(process: Process) -> None:
    """Construct the service and start it.

    Raises:
        MissingSecretsKeyError: the key that encrypts secrets is not configured.
    """
    settings = load(SubscriptionsSettings)
    name = f"ringback subscriptions {socket.gethostname()}"
    url, health, clock = process.settings.amqp_url, process.health, SystemClock()
    declared = topology(process.settings.queue_type).only(
        (USER_EVENTS, SUBSCRIPTIONS_OUTCOMES, SUBSCRIPTIONS_REQUESTS, CALLBACKS)
    )
    database = Database(
        process.settings.database_url or "",  # start-up has checked that it is set
        name=name,
        health=health,
        size=settings.connections,
        schema=SCHEMA,
    )
    publisher = Publisher(url, name=f"{name} publisher", topology=declared, health=health)
    messenger = Messenger(database, deliveries.add_user_events)
    cipher = SecretCipher.required(load(SecuritySettings).secrets_key, "subscriptions")
    wakes, dispatch_soon = WakePublisher(publisher), asyncio.Event()

    def appended(user_ids: Collection[int]) -> None:
        wakes.add(user_ids)
        dispatch_soon.set()

    appender = Appender(messenger, appended, batch=settings.batch)
    depth = QueueDepth(url, name=f"{name} depths", topology=declared, health=health)
    claims = Claims(
        database, cipher, disable_after=settings.disable_after, disabled=_report_disabled
    )
    skew = ClockSkew(metrics.CLOCK_SKEW.set)
    settler = Settler(claims, skew, dispatch_soon.set)
    leases = LeaseExtender(claims.extend)
    queue = CallbackQueue(
        lambda: depth.count((CALLBACKS,)), settings.max_queued, metrics.DELIVERY_BACKPRESSURE.set
    )
    dispatcher = Dispatcher(claims, publisher, cipher, settler, leases, queue, skew, dispatch_soon)
    facts = FactSender(publisher, url=url, name=name, health=health)
    endpoints = Endpoints(database, cipher, limit=settings.max_endpoints)
    messages = EndpointMessages(database)
    worker = EndpointWorker(
        Sweeper(database, messages, lambda fact: facts.send_confirmed([fact])),
        Replays(database, rate=settings.replay_rate),
        dispatch_soon.set,
    )
    slots = asyncio.Semaphore(MAX_CONCURRENT)

    def changed() -> None:
        worker.wake()
        dispatch_soon.set()

    passwords = Passwords()
    process.stack.callback(passwords.close)

    def consumer(spec: ConsumerSpec[Any, Any]) -> Consumer[Any, Any]:
        return Consumer(
            spec,
            url=url,
            name=f"{name} {spec.queue}",
            topology=declared,
            publisher=publisher,
            prefetch=settings.prefetch,
            clock=clock,
            health=health,
        )

    user_events = consumer(
        ConsumerSpec(
            queue=USER_EVENTS,
            parse=partial(handlers.parse_user_event, max_bytes=settings.max_message_bytes),
            identity=handlers.identity,
            handle=Handler(appender.append).handle,
            report=handlers.report,
            send_facts=facts.send,
        )
    )
    outcomes = consumer(
        ConsumerSpec(
            queue=SUBSCRIPTIONS_OUTCOMES,
            parse=partial(parse_facts, model=Facts, types=FACT_TYPES),
            handle=settler.handle,
            report=settlement.report,
            send_facts=facts.send,
        )
    )
    server = RpcServer(
        SUBSCRIPTIONS_REQUESTS,
        {
            **MessengerRequests(
                messenger,
                appender,
                passwords,
                wakes.add,
                token_lifetime=timedelta(days=settings.token_lifetime),
            ).handlers(),
            **RegistrationRequests(Registrations(database, cipher), changed).handlers(),
            **EndpointRequests(
                endpoints, messages, slots, changed=changed, replay_rate=settings.replay_rate
            ).handlers(),
            **EndpointMessageRequests(
                endpoints, messages, slots, added=dispatch_soon.set
            ).handlers(),
        },
        url=url,
        name=f"{name} requests",
        topology=declared,
        prefetch=settings.prefetch,
        health=health,
    )
    retention = Retention(messenger, messages, timedelta(days=settings.retention))
    for part in (
        *(database, publisher, depth, appender, wakes, user_events, server, retention),
        *(settler, dispatcher, outcomes, facts, worker),
    ):
        process.run(part.run())
    process.run(leases.run(dispatcher.ready))
    for drain in (
        *(user_events.drain, server.drain, wakes.drain),
        *(dispatcher.drain, leases.drain, outcomes.drain, facts.drain),
    ):
        process.on_drain(drain)


async def _report_disabled(_: Any, endpoint_ids: Sequence[UUID]) -> None:
    for endpoint_id in endpoint_ids:
        metrics.DISABLED.inc()
        logger.warning("endpoint disabled", extra={"endpoint_id": str(endpoint_id)})


SERVICE = Service(
    SERVICES["subscriptions"],
    (SubscriptionsSettings, SecuritySettings),
    start,
    required={
        (SecuritySettings, "secrets_key"): "It encrypts secrets. Create a key with `openssl rand"
        " -base64 32`."
    },
)
