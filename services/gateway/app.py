"""The composition root of the gateway: the only place that constructs things."""

import logging
import os
import socket
from typing import Final

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from services.gateway import description
from services.gateway.asking import Service as Asked
from services.gateway.asyncapi import asyncapi
from services.gateway.callbacks import Callbacks
from services.gateway.callers import Callers
from services.gateway.edge import edge
from services.gateway.events import Events
from services.gateway.operations import ABOUT, operations
from services.gateway.postings import Postings
from services.gateway.readiness import keep_talking, watch
from services.gateway.settings import GatewaySettings
from shared.amqp.publisher import Publisher
from shared.amqp.request_reply import Requester
from shared.http.openapi import document
from shared.process.command import Service
from shared.process.metrics import add_routes
from shared.process.run import CLOSING, Process
from shared.settings import Settings, load
from shared.tickets import Tickets, public_keys
from shared.topology import EVENTS, MAILINGS_REQUESTS, SCHEDULER_REQUESTS, topology

logger = logging.getLogger(__name__)

_ROUTE: Final = {"get": web.get, "post": web.post, "patch": web.patch, "delete": web.delete}


async def start(process: Process) -> None:
    """Put the gateway together and set it going."""
    settings = load(GatewaySettings, "gateway")
    amqp_url, name = process.settings.amqp_url, f"ringback gateway {socket.gethostname()}"
    every = topology(process.settings.queue_type)
    requester = Requester(amqp_url, name=name, health=process.health)
    publisher = Publisher(
        amqp_url, name=f"{name}, events", topology=every.only((EVENTS,)), health=process.health
    )
    process.health.expect("scheduler")
    patience = settings.request_timeout
    scheduler = Asked(requester, "scheduler", SCHEDULER_REQUESTS, timeout=patience)
    mailings = Asked(requester, "mailings", MAILINGS_REQUESTS, timeout=patience)
    callers = Callers(_tickets(process.settings), anonymous=settings.anonymous)
    app = web.Application(middlewares=[edge()], client_max_size=settings.max_batch_bytes)
    declared = operations(settings.example_url)
    handlers = {
        **Callbacks(scheduler, callers, settings).handlers,
        **Events(publisher, callers, settings).handlers,
        **Postings(mailings, callers, settings).handlers,
    }
    app.add_routes(_ROUTE[op.method](op.path, handlers[op.id]) for op in declared)
    app.add_routes(description.routes(document(declared, ABOUT), asyncapi(every)))
    add_routes(
        app,
        ready=lambda: (process.health.ready, process.health.report()),
        registry=_registry(),
    )
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,  # a small body can't become a large one
        shutdown_timeout=max(process.settings.shutdown_timeout - CLOSING, 0.0),
    )
    await runner.setup()
    process.stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(
        runner,
        process.settings.http_host,
        process.settings.http_port,
        reuse_port=_one_of_many(),
    )
    await site.start()
    port = runner.addresses[0][1]
    logger.info("http on port %d", port, extra={"port": port})

    async def drain(_: float) -> None:
        await runner.cleanup()

    process.run(requester.run())
    process.run(publisher.run())
    process.run(keep_talking(publisher))
    process.run(watch(requester, SCHEDULER_REQUESTS, part="scheduler", health=process.health))
    process.on_drain(drain)


def _tickets(settings: Settings) -> Tickets:
    key = settings.ticket_key
    file = settings.ticket_jwks_file
    return Tickets(
        None if key is None else key.get_secret_value(),
        None if file is None else public_keys(file),
    )


def _registry() -> CollectorRegistry:
    """The metrics of this process, or of all its fellow workers."""
    if not _one_of_many():
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def _one_of_many() -> bool:
    """Whether this is one of several workers, which share the port and the metrics."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


SERVICE = Service("services.gateway", GatewaySettings, start)
