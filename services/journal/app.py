"""The composition root of the journal: the only module that constructs objects."""

import asyncio
import socket
import time
from datetime import timedelta

from services.journal.attempts.requests import AttemptRequests
from services.journal.attempts.store import Entries
from services.journal.audit.requests import AuditRequests
from services.journal.audit.store import Audit
from services.journal.dead.index import LetterIndex
from services.journal.dead.letters import LetterReader
from services.journal.dead.moving import Moves
from services.journal.dead.reconciliation import Reconciliation
from services.journal.dead.requests import DeadRequests
from services.journal.ingestion import Ingestion
from services.journal.jobs.requests import JobRequests
from services.journal.jobs.store import Jobs
from services.journal.jobs.worker import JobWorker
from services.journal.overview.requests import OverviewRequests
from services.journal.partitions import Partitions
from services.journal.pauses.announcing import Announcer
from services.journal.pauses.requests import PauseRequests
from services.journal.pauses.store import PausedTargetStore
from services.journal.reading import MAX_CONCURRENT
from services.journal.replays.bulk import BulkReplay
from services.journal.replays.bulk_requests import BulkReplayRequests
from services.journal.replays.domain import Ticket
from services.journal.replays.requests import ReplayRequests
from services.journal.replays.sending import ReplaySender
from services.journal.replays.store import Replays
from services.journal.retention import Retention
from services.journal.settings import JournalSettings
from services.journal.store import Store
from services.journal.targets.recording import record_breakers, record_lanes
from services.journal.targets.requests import TargetRequests
from services.journal.targets.store import Figures
from shared.amqp.depth import QueueDepth
from shared.amqp.fact_sender import FactSender
from shared.amqp.publisher import Publisher
from shared.amqp.rpc_client import RpcClient
from shared.amqp.rpc_server import RpcServer
from shared.clock import SystemClock
from shared.contracts.journal import JobKind
from shared.postgres.migrations import Schema
from shared.postgres.pool import Database
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import SERVICES
from shared.security.encryption import SecretCipher
from shared.security.settings import SecuritySettings
from shared.security.tickets import TicketIssuer
from shared.settings import load
from shared.topology import (
    CONTROLS,
    JOURNAL_FACTS,
    JOURNAL_REQUESTS,
    WORK_QUEUES,
    topology,
)

SCHEMA = Schema.of("services.journal")


async def start(process: Process) -> None:
    """Construct the journal and start it."""
    settings = load(JournalSettings)
    name = f"ringback journal {socket.gethostname()}"
    url, health, clock = process.settings.amqp_url, process.health, SystemClock()
    database_url = process.settings.database_url or ""  # start-up has checked that it is set
    table = topology(process.settings.queue_type, backlog=process.settings.journal_backlog)
    retention = timedelta(days=settings.retention)
    database = Database(
        database_url, name=name, health=health, size=settings.connections, schema=SCHEMA
    )
    partitions, index, audit = Partitions(database), LetterIndex(database), Audit(database)
    jobs = Jobs(database, audit)
    security = load(SecuritySettings)
    key, issuer = security.secrets_key, TicketIssuer.of(security)
    cipher = None if key is None else SecretCipher.of(key.get_secret_value())
    # Dead letters are moved back to every work queue.
    work_queues = table.only(queue.name for queue in WORK_QUEUES)
    publisher = Publisher(
        url,
        name=f"{name} publisher",
        topology=table.only((CONTROLS, *(queue.name for queue in WORK_QUEUES))),
        health=health,
    )
    facts = FactSender(publisher, url=url, name=name, health=health)
    moves = Moves(
        database,
        jobs,
        index,
        publisher=publisher,
        facts=facts,
        url=url,
        name=f"{name} dead letters",
        clock=clock,
    )
    replays = Replays(database)

    def own_ticket(client_id: str) -> Ticket | None:
        return None if issuer is None else (security.ticket_header, issuer.own(client_id))

    sender = ReplaySender(publisher, facts, cipher, clock, own_ticket)
    bulk = BulkReplay(database, replays, sender, jobs, cipher)
    worker = JobWorker(
        jobs,
        {
            JobKind.REDRIVE: moves.work,
            JobKind.DISCARD: moves.work,
            JobKind.REPLAY: bulk.work,
        },
    )
    reconciliation = Reconciliation(
        index,
        jobs,
        amqp_url=url,
        database_url=database_url,
        name=f"{name} reconciliation",
        topology=work_queues,
        health=health,
        clock=clock,
    )
    ingestion = Ingestion(
        Store(
            database,
            partitions,
            retention=retention,
            recorders=(index.record, record_breakers, record_lanes),
        ),
        amqp_url=url,
        database_url=database_url,
        name=f"{name} stream",
        topology=table.only((JOURNAL_FACTS,)),
        health=health,
        batch=settings.batch,
    )
    slots = asyncio.Semaphore(MAX_CONCURRENT)
    entries, figures = Entries(database, cipher, time.monotonic), Figures(database)
    depth = QueueDepth(
        url,
        name=f"{name} depths",
        topology=work_queues,
        health=health,
    )
    scheduler = RpcClient(url, name=f"{name} scheduler", health=health)
    paused = PausedTargetStore(database)
    announcer = Announcer(paused, publisher)
    responder = RpcServer(
        JOURNAL_REQUESTS,
        {
            **AttemptRequests(entries, slots).handlers(),
            **TargetRequests(figures, slots, time.time).handlers(),
            **OverviewRequests(
                figures,
                entries,
                depth,
                scheduler,
                slots,
                monotonic=time.monotonic,
                now=time.time,
            ).handlers(),
            **AuditRequests(audit, slots).handlers(),
            **DeadRequests(
                database,
                index,
                jobs,
                LetterReader(url, name=f"{name} letters"),
                slots,
                wake=worker.wake,
            ).handlers(),
            **JobRequests(jobs, slots).handlers(),
            **ReplayRequests(replays, sender, audit, cipher, slots).handlers(),
            **BulkReplayRequests(database, replays, jobs, cipher, wake=worker.wake).handlers(),
            **PauseRequests(paused, announcer, audit).handlers(),
        },
        url=url,
        name=f"{name} requests",
        topology=table.only((JOURNAL_REQUESTS,)),
        prefetch=settings.prefetch,
        health=health,
    )
    for part in (
        *(database, publisher, facts, ingestion, depth, scheduler),
        *(responder, worker, reconciliation, announcer),
        Retention(database, partitions, retention),
    ):
        process.run(part.run())
    for drain in (responder.drain, worker.drain, facts.drain):
        process.on_drain(drain)


SERVICE = Service(SERVICES["journal"], (JournalSettings, SecuritySettings), start)
