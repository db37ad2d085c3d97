"""The composition root of mailings: the only module that constructs objects."""

import socket
from datetime import timedelta
from functools import partial
from typing import Any

from pydantic import SecretStr

from services.mailings import handlers, settlement
from services.mailings.campaigns import starts
from services.mailings.campaigns.partners import Partners
from services.mailings.campaigns.requests import CampaignRequests
from services.mailings.campaigns.starts import NOTIFICATION, StartNotification
from services.mailings.campaigns.store import Campaigns
from services.mailings.campaigns.texts import Texts
from services.mailings.campaigns.worker import CampaignWorker
from services.mailings.clients.requests import ClientRequests
from services.mailings.clients.store import Directory
from services.mailings.expansion.depth import QueueLimit
from services.mailings.expansion.publisher import ThrottledPublisher
from services.mailings.expansion.sources import ANYWHERE, Sources
from services.mailings.expansion.worker import ExpansionWorker
from services.mailings.handlers import Handler
from services.mailings.intake import Intake
from services.mailings.rendering.requests import TemplateRequests
from services.mailings.reports import sending
from services.mailings.reports.requests import ReportRequests
from services.mailings.reports.schedule import ReportSchedule
from services.mailings.reports.sending import ReportNotification, ReportSender
from services.mailings.reports.store import Reports
from services.mailings.requests import Requests
from services.mailings.retention import Retention
from services.mailings.settings import MailingsSettings
from services.mailings.settlement import Settler
from services.mailings.statistics.requests import StatisticsRequests
from services.mailings.statistics.store import StatisticsStore
from services.mailings.store import Store
from services.mailings.unsubscribe import Unsubscribe
from shared.amqp.consumer import Consumer
from shared.amqp.depth import QueueDepth
from shared.amqp.fact_sender import FactSender
from shared.amqp.facts import parse_facts
from shared.amqp.message import ConsumerSpec
from shared.amqp.parsing import parse_message
from shared.amqp.publisher import Publisher
from shared.amqp.rpc_client import RpcClient
from shared.amqp.rpc_server import RpcServer
from shared.clock import SystemClock
from shared.contracts.message_facts import MESSAGE_FACT_TYPES, MessageFacts
from shared.contracts.postings import POSTING, Posting
from shared.contracts.schedules import time_zone
from shared.errors import RingbackError
from shared.http.client import Client
from shared.postgres.migrations import Schema
from shared.postgres.pool import Database
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import CHANNELS, SERVICES
from shared.security.encryption import parse_keys
from shared.security.settings import SecuritySettings
from shared.settings import load
from shared.topology import (
    MAILINGS_OUTCOMES,
    MAILINGS_REPORTS,
    MAILINGS_REQUESTS,
    MAILINGS_STARTS,
    POSTINGS,
    topology,
)
from shared.version import VERSION

SCHEMA = Schema.of("services.mailings")


class MissingSecretsKeyError(RingbackError):
    """The key that signs unsubscribe links is not configured."""

    exit_code = 2


def _unsubscribe(url: str | None, key: SecretStr | None) -> Unsubscribe:
    if url is not None and key is None:
        raise MissingSecretsKeyError(
            "Cannot start mailings: RINGBACK_MAILINGS_UNSUBSCRIBE_URL is set, but not"
            " RINGBACK_SECRETS_KEY, which signs the links. Create a key with"
            " `openssl rand -base64 32`."
        )
    return Unsubscribe(url, () if key is None else parse_keys(key.get_secret_value()))


async def start(process: Process) -> None:
    """Construct the service and start it.

    Raises:
        MissingSecretsKeyError: the key that signs unsubscribe links is not configured.
    """
    settings = load(MailingsSettings)
    unsubscribe = _unsubscribe(settings.unsubscribe_url, load(SecuritySettings).secrets_key)
    name = f"ringback mailings {socket.gethostname()}"
    url, health, clock = process.settings.amqp_url, process.health, SystemClock()
    declared = topology(process.settings.queue_type).only(
        (
            POSTINGS,
            MAILINGS_OUTCOMES,
            MAILINGS_REQUESTS,
            MAILINGS_STARTS,
            MAILINGS_REPORTS,
            *(queue for channel in CHANNELS.values() for queue in channel.queues.values()),
        )
    )
    database = Database(
        process.settings.database_url or "",  # start-up has checked that it is set
        name=name,
        health=health,
        schema=SCHEMA,
    )
    publisher = Publisher(url, name=f"{name} publisher", topology=declared, health=health)
    client = await process.stack.enter_async_context(
        Client(ANYWHERE, user_agent=f"Ringback/{VERSION}")
    )
    facts = FactSender(publisher, url=url, name=name, health=health)
    depth = QueueDepth(url, name=f"{name} depths", topology=declared, health=health)
    limit = QueueLimit(depth, max_waiting=settings.max_waiting, monotonic=clock.monotonic)
    store, directory = Store(database), Directory(database)
    templates = settings.templates()
    expansion = ExpansionWorker(
        store,
        Sources(client, settings.sources, settings.credentials),
        directory,
        templates,
        ThrottledPublisher(publisher, limit, clock),
        clock=clock,
        settings=settings,
        unsubscribe=unsubscribe,
    )
    intake = Intake(store, expansion.wake)
    settler = Settler(store)
    rpc_client = RpcClient(url, name=f"{name} partners", health=health)
    campaigns = Campaigns(database)
    started = partial(expansion.wake, ["bulk"])
    worker = CampaignWorker(campaigns, store, Partners(rpc_client), started=started)
    texts = Texts(templates, settings.product)
    reports = ReportSender(
        Reports(database),
        templates,
        publisher,
        clock,
        to=settings.report_to,
        zone=time_zone(settings.report_timezone),
        product=settings.product,
    )

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

    postings = consumer(
        ConsumerSpec(
            queue=POSTINGS,
            parse=partial(
                parse_message, models={POSTING: Posting}, max_bytes=settings.max_message_bytes
            ),
            handle=Handler(intake, templates, clock).handle,
            report=handlers.report,
            send_facts=facts.send,
        )
    )
    outcomes = consumer(
        ConsumerSpec(
            queue=MAILINGS_OUTCOMES,
            parse=partial(parse_facts, model=MessageFacts, types=MESSAGE_FACT_TYPES),
            handle=settler.handle,
            report=settlement.report,
            send_facts=facts.send,
        )
    )
    start_notifications = consumer(
        ConsumerSpec(
            queue=MAILINGS_STARTS,
            parse=partial(
                parse_message,
                models={NOTIFICATION: StartNotification},
                max_bytes=settings.max_message_bytes,
            ),
            handle=starts.Handler(worker.start).handle,
            report=starts.report,
            send_facts=facts.send,
        )
    )
    report_notifications = consumer(
        ConsumerSpec(
            queue=MAILINGS_REPORTS,
            parse=partial(
                parse_message,
                models={NOTIFICATION: ReportNotification},
                max_bytes=settings.max_message_bytes,
            ),
            handle=reports.handle,
            report=sending.report,
            send_facts=facts.send,
        )
    )
    server = RpcServer(
        MAILINGS_REQUESTS,
        {
            **TemplateRequests(templates, settings.product).handlers(),
            **Requests(intake, store, templates, unsubscribe, clock).handlers(),
            **ClientRequests(directory).handlers(),
            **StatisticsRequests(StatisticsStore(database)).handlers(),
            **ReportRequests(reports).handlers(),
            **CampaignRequests(
                campaigns, directory, worker, texts, publisher, clock=clock, started=started
            ).handlers(),
        },
        url=url,
        name=f"{name} requests",
        topology=declared,
        prefetch=settings.prefetch,
        health=health,
    )
    retention = Retention(store, timedelta(days=settings.retention))
    for part in (
        *(database, store, publisher, facts, depth, intake, settler, expansion),
        *(postings, outcomes, server, retention),
        *(rpc_client, worker, start_notifications, report_notifications),
    ):
        process.run(part.run())
    if settings.report_to:
        at, zone = settings.report_at, settings.report_timezone
        process.run(ReportSchedule(rpc_client, at=at, timezone=zone).run())
    for drain in (
        *(postings.drain, start_notifications.drain, report_notifications.drain),
        server.drain,
        *(expansion.drain, outcomes.drain, facts.drain),
    ):
        process.on_drain(drain)


SERVICE = Service(SERVICES["mailings"], (MailingsSettings, SecuritySettings), start)
