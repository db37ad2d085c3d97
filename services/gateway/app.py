"""The composition root of the gateway: the only place that constructs things."""

import logging
import os
import socket
from typing import Final

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from services.gateway.api import docs_page as description
from services.gateway.api.asyncapi import asyncapi
from services.gateway.auth import Authenticator
from services.gateway.callbacks import Callbacks
from services.gateway.events import Events
from services.gateway.middleware import middleware
from services.gateway.operations import ABOUT, operations
from services.gateway.postings import Postings
from services.gateway.readiness import keep_talking, watch
from services.gateway.rpc import ServiceClient as Asked
from services.gateway.settings import GatewaySettings
from shared.amqp.publisher import Publisher
from shared.amqp.request_reply import RpcClient
from shared.http.openapi import document
from shared.process.command import Service
from shared.process.metrics import add_routes
from shared.process.run import CLOSE_RESERVE, Process
from shared.registry import SERVICES
from shared.security.tickets import Tickets, public_keys
from shared.settings import Settings, load
from shared.topology import EVENTS, MAILINGS_REQUESTS, SCHEDULER_REQUESTS, topology

logger = logging.getLogger(__name__)

_ROUTE: Final = {"get": web.get, "post": web.post, "patch": web.patch, "delete": web.delete}


async def start(process: Process) -> None:
    """Put the gateway together and set it going."""
    settings = load(GatewaySettings, "gateway")
    amqp_url, name = process.settings.amqp_url, f"ringback gateway {socket.gethostname()}"
    every = topology(process.settings.queue_type)
    requester = RpcClient(amqp_url, name=name, health=process.health)
    publisher = Publisher(
        amqp_url, name=f"{name}, events", topology=every.only((EVENTS,)), health=process.health
    )
    process.health.expect("scheduler")
    patience = settings.request_timeout
    scheduler = Asked(requester, "scheduler", SCHEDULER_REQUESTS, timeout=patience)
    mailings = Asked(requester, "mailings", MAILINGS_REQUESTS, timeout=patience)
    callers = Authenticator(_tickets(process.settings), anonymous=settings.anonymous)
    app = web.Application(middlewares=[middleware()], client_max_size=settings.max_batch_bytes)
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
        shutdown_timeout=max(process.settings.shutdown_timeout - CLOSE_RESERVE, 0.0),
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


SERVICE = Service(SERVICES["gateway"], GatewaySettings, start)
