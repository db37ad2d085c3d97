"""The composition root of ingestion: the only module that constructs objects."""

import socket
from datetime import timedelta
from functools import partial

from services.ingestion import rules
from services.ingestion.handlers import Handler, identity, parse_event, report
from services.ingestion.outbox import Outbox
from services.ingestion.retention import Retention
from services.ingestion.settings import IngestionSettings
from services.ingestion.store import Store
from shared.amqp.consumer import Consumer
from shared.amqp.fact_sender import FactSender
from shared.amqp.message import ConsumerSpec
from shared.amqp.publisher import Publisher
from shared.clock import SystemClock
from shared.postgres.migrations import Schema
from shared.postgres.pool import Database
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import SERVICES
from shared.settings import load
from shared.topology import CALLBACKS, EVENTS, POSTINGS, SCHEDULES, USER_EVENTS, topology

SCHEMA = Schema.of("services.ingestion")


async def start(process: Process) -> None:
    """Construct ingestion and start it.

    Raises:
        InvalidRulesError: the rules file has errors.
    """
    settings = load(IngestionSettings)
    event_rules = rules.load(settings.rules_file)
    name = f"ringback ingestion {socket.gethostname()}"
    url, health, clock = process.settings.amqp_url, process.health, SystemClock()
    declared = topology(process.settings.queue_type).only(
        (EVENTS, POSTINGS, SCHEDULES, CALLBACKS, USER_EVENTS)
    )
    database = Database(
        process.settings.database_url or "",  # start-up has checked that it is set
        name=name,
        health=health,
        schema=SCHEMA,
    )
    publisher = Publisher(url, name=f"{name} publisher", topology=declared, health=health)
    facts = FactSender(publisher, url=url, name=name, health=health)
    store = Store(database)
    outbox = Outbox(store, publisher, batch=settings.batch, monotonic=clock.monotonic)
    handler = Handler(event_rules, store, outbox, clock, batch=settings.batch)
    consumer = Consumer(
        ConsumerSpec(
            queue=EVENTS,
            parse=partial(parse_event, max_bytes=settings.max_message_bytes),
            identity=identity,
            handle=handler.handle,
            report=report,
            send_facts=facts.send,
        ),
        url=url,
        name=f"{name} consumer",
        topology=declared,
        publisher=publisher,
        prefetch=settings.prefetch,
        clock=clock,
        health=health,
    )
    retention = Retention(store, timedelta(days=settings.retention))
    for part in (database, publisher, facts, outbox, handler, consumer, retention):
        process.run(part.run())
    process.on_drain(consumer.drain)
    process.on_drain(outbox.drain)
    process.on_drain(facts.drain)


SERVICE = Service(SERVICES["ingestion"], (IngestionSettings,), start)
