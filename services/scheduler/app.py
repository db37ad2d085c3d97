"""The composition root of the scheduler: the only place that constructs objects."""

import socket
from datetime import timedelta
from functools import partial
from typing import Any

from services.scheduler import handlers, metrics, settlement
from services.scheduler.backlog import BacklogMonitor
from services.scheduler.changes import ChangeWriter
from services.scheduler.clock import DatabaseClock
from services.scheduler.dispatch import Dispatcher
from services.scheduler.due_times import DueTimes
from services.scheduler.facts import FactPublisher
from services.scheduler.handlers import Handler
from services.scheduler.intake import Intake
from services.scheduler.notifications import NotificationPublisher
from services.scheduler.operations import Operations
from services.scheduler.partitions import Partitions
from services.scheduler.requests import Requests
from services.scheduler.retention import Retention
from services.scheduler.settings import SchedulerSettings
from services.scheduler.settlement import Settler
from services.scheduler.store import Store
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
from shared.security.tickets import TicketIssuer, TicketVerifier
from shared.settings import load
from shared.skew import ClockSkew
from shared.topology import (
    CALLBACKS,
    MAILINGS_STARTS,
    SCHEDULER_OUTCOMES,
    SCHEDULER_REQUESTS,
    SCHEDULES,
    Topology,
    topology,
)

SCHEMA = Schema.of("services.scheduler")


async def start(process: Process) -> None:
    """Construct the scheduler and start its tasks.

    Raises:
        MissingSecretsKeyError: the key that encrypts secrets is not configured.
        PublicSigningKeyError: the first key that signs tickets is public.
    """
    settings = load(SchedulerSettings)
    security = load(SecuritySettings)
    cipher = SecretCipher.required(security.secrets_key, "the scheduler")
    verifier, issuer = TicketVerifier.of(security), TicketIssuer.of(security)
    ticket_header = security.ticket_header
    name = f"ringback scheduler {socket.gethostname()}"
    url, health = process.settings.amqp_url, process.health
    declared = topology(process.settings.queue_type).only(
        (SCHEDULES, SCHEDULER_OUTCOMES, SCHEDULER_REQUESTS, CALLBACKS, MAILINGS_STARTS)
    )
    database = Database(
        process.settings.database_url or "",  # start-up has checked that it is set
        name=name,
        health=health,
        size=settings.connections,
        schema=SCHEMA,
    )
    publisher = Publisher(url, name=f"{name} publisher", topology=declared, health=health)
    amqp = None
    if settings.amqp_exchanges:
        amqp = Publisher(
            url, name=f"{name} notifications", topology=Topology((), (), ()), health=health
        )
    depth = QueueDepth(url, name=f"{name} depths", topology=declared, health=health)
    queue = CallbackQueue(
        lambda: depth.count((CALLBACKS,)), settings.max_queued, metrics.BACKPRESSURE.set
    )
    sender = FactSender(publisher, url=url, name=name, health=health)
    store, clock, facts = Store(database), DatabaseClock(), FactPublisher(sender)
    leases, changes, skew = (
        LeaseExtender(store.extend),
        ChangeWriter(store, facts),
        ClockSkew(metrics.CLOCK_SKEW.set),
    )
    dispatcher = Dispatcher(
        store,
        NotificationPublisher(publisher, amqp, cipher, issuer, skew, ticket_header=ticket_header),
        changes,
        leases,
        clock,
        facts=facts,
        queue=queue,
        batch=settings.batch,
        poll=settings.poll,
    )
    intake = Intake(
        store,
        cipher,
        clock,
        facts=facts,
        queue=queue,
        dispatch=dispatcher.dispatch,
        wake_at=dispatcher.wake_at,
        batch=settings.batch,
        lease=settings.lease,
        amqp_exchanges=settings.amqp_exchanges,
        max_message_bytes=settings.max_message_bytes,
        ticket_header=ticket_header,
    )
    operations = Operations(store, changes, clock, dispatcher.wake_at, intake.changed, facts=facts)
    settler = Settler(
        store,
        changes,
        facts,
        skew,
        wake_at=dispatcher.wake_at,
        wait_for_backlog=dispatcher.wait_for_backlog,
    )

    def consumer(spec: ConsumerSpec[Any, Any]) -> Consumer[Any, Any]:
        return Consumer(
            spec,
            url=url,
            name=f"{name} {spec.queue}",
            topology=declared,
            publisher=publisher,
            prefetch=settings.prefetch,
            clock=SystemClock(),
            health=health,
        )

    schedules = consumer(
        ConsumerSpec(
            queue=SCHEDULES,
            parse=partial(handlers.parse_command, max_bytes=settings.max_message_bytes),
            handle=Handler(
                intake,
                operations,
                verifier,
                anonymous=settings.anonymous,
                ticket_header=ticket_header,
            ).handle,
            report=handlers.report,
            send_facts=sender.send,
        )
    )
    outcomes = consumer(
        ConsumerSpec(
            queue=SCHEDULER_OUTCOMES,
            parse=partial(parse_facts, model=Facts, types=FACT_TYPES),
            handle=settler.handle,
            report=settlement.report,
            send_facts=sender.send,
        )
    )
    responder = RpcServer(
        SCHEDULER_REQUESTS,
        Requests(
            intake,
            operations,
            DueTimes(database, store, clock),
            fault=lambda: health.fault,
            anonymous=settings.anonymous,
        ).handlers(),
        url=url,
        name=f"{name} requests",
        topology=declared,
        prefetch=settings.prefetch,
        health=health,
    )
    retention = Retention(Partitions(database), timedelta(days=settings.retention))
    for part in (database, publisher, amqp, depth):
        if part is not None:
            process.run(part.run())
    for loop in (
        *(dispatcher, intake, settler, changes, sender),
        *(schedules, outcomes, responder, retention, BacklogMonitor(store)),
    ):
        process.run(loop.run())
    process.run(leases.run(dispatcher.wait_for_backlog))
    for drain in (
        schedules.drain,
        responder.drain,
        dispatcher.drain,
        leases.drain,
        outcomes.drain,
        sender.drain,
    ):
        process.on_drain(drain)


SERVICE = Service(
    SERVICES["scheduler"],
    (SchedulerSettings, SecuritySettings),
    start,
    required={
        (SecuritySettings, "secrets_key"): "It encrypts secrets. Create a key with `openssl rand"
        " -base64 32`."
    },
)
