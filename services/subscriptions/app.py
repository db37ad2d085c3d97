"""The composition root of subscriptions: the only module that constructs objects."""

import socket
from datetime import timedelta
from functools import partial

from services.subscriptions.deliveries import store as deliveries
from services.subscriptions.deliveries.requests import RegistrationRequests
from services.subscriptions.endpoints.requests import EndpointRequests
from services.subscriptions.messenger import handlers
from services.subscriptions.messenger.appending import Appender
from services.subscriptions.messenger.handlers import Handler
from services.subscriptions.messenger.passwords import Passwords
from services.subscriptions.messenger.requests import MessengerRequests
from services.subscriptions.messenger.store import Messenger
from services.subscriptions.messenger.wakes import Wakes
from services.subscriptions.retention import Retention
from services.subscriptions.settings import SubscriptionsSettings
from shared.amqp.consumer import Consumer
from shared.amqp.message import ConsumerSpec
from shared.amqp.publisher import Publisher
from shared.amqp.rpc_server import RpcServer
from shared.clock import SystemClock
from shared.postgres.migrations import Schema
from shared.postgres.pool import Database
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import SERVICES
from shared.settings import load
from shared.topology import (
    CALLBACKS,
    SUBSCRIPTIONS_OUTCOMES,
    SUBSCRIPTIONS_REQUESTS,
    USER_EVENTS,
    topology,
)

SCHEMA = Schema.of("services.subscriptions")


async def start(process: Process) -> None:
    """Construct the service and start it."""
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
    wakes = Wakes(publisher)
    appender = Appender(messenger, wakes.add, batch=settings.batch)
    passwords = Passwords()
    process.stack.callback(passwords.close)
    user_events = Consumer(
        ConsumerSpec(
            queue=USER_EVENTS,
            parse=partial(handlers.parse_user_event, max_bytes=settings.max_message_bytes),
            identity=handlers.identity,
            handle=Handler(appender.append).handle,
            report=handlers.report,
        ),
        url=url,
        name=f"{name} {USER_EVENTS}",
        topology=declared,
        publisher=publisher,
        prefetch=settings.prefetch,
        clock=clock,
        health=health,
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
            **RegistrationRequests().handlers(),
            **EndpointRequests().handlers(),
        },
        url=url,
        name=f"{name} requests",
        topology=declared,
        prefetch=settings.prefetch,
        health=health,
    )
    retention = Retention(messenger, timedelta(days=settings.retention))
    for part in (database, publisher, appender, wakes, user_events, server, retention):
        process.run(part.run())
    for drain in (user_events.drain, server.drain, wakes.drain):
        process.on_drain(drain)


SERVICE = Service(SERVICES["subscriptions"], (SubscriptionsSettings,), start)
