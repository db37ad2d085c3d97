"""The composition root of the gateway: the only module that constructs objects."""

import logging
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus

from aiohttp import hdrs, web
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from services.gateway.api import docs_page, jwks, unsubscribe
from services.gateway.api.asyncapi import asyncapi
from services.gateway.auth import Authenticator
from services.gateway.messenger.limits import Limits
from services.gateway.middleware import middleware, on_expect
from services.gateway.parsing import QUERY, parse_query
from services.gateway.polls.reading import EventReader
from services.gateway.polls.waiters import Waiters
from services.gateway.polls.wakes import WakeReceiver
from services.gateway.readiness import keep_publishing, watch_scheduler
from services.gateway.routes import about, all_routes
from services.gateway.routes.declaration import Dependencies, Route
from services.gateway.settings import GatewaySettings
from shared.amqp.publisher import Publisher
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_client import RpcClient
from shared.contracts.schedule_requests import PING
from shared.http.openapi import document
from shared.http.problem import ProblemError
from shared.http.rate_limit import RateLimiter
from shared.http.server import AppRunner
from shared.http.service_client import ServiceClient
from shared.http.tracing import traceparent_of
from shared.process.command import Service
from shared.process.health import Health
from shared.process.metrics import add_routes
from shared.process.run import Process, drain_time
from shared.registry import SERVICES
from shared.security.settings import SecuritySettings
from shared.security.tickets import TicketVerifier
from shared.settings import load
from shared.topology import EVENTS, Topology, topology

logger = logging.getLogger(__name__)


async def start(process: Process) -> None:
    """Construct the gateway and start it."""
    settings = load(GatewaySettings)
    amqp_url, name = process.settings.amqp_url, f"ringback gateway {socket.gethostname()}"
    declared = topology(process.settings.queue_type)
    rpc_client = RpcClient(amqp_url, name=name, health=process.health)
    publisher = Publisher(
        amqp_url,
        name=f"{name}, events",
        topology=declared.only((EVENTS,)),
        health=process.health,
    )
    process.health.expect(PING.service)
    services = ServiceClient(rpc_client, timeout=settings.request_timeout)
    waiters = Waiters(
        limit=settings.polls,
        user_limit=settings.polls_per_user,
        address_limit=settings.polls_per_address,
    )
    wakes = WakeReceiver(
        waiters,
        url=amqp_url,
        name=f"{name}, user events",
        topology=declared.only(()),
        ready=rpc_client.ready,
        health=process.health,
    )
    deps = Dependencies(
        services, publisher, settings, Limits(settings), waiters, EventReader(services)
    )
    runner = AppRunner(
        application(deps, load(SecuritySettings), declared, process.health),
        access_log=None,
        auto_decompress=False,  # a small body cannot become a large one
        shutdown_timeout=drain_time(process.settings.shutdown_timeout),
    )
    await runner.setup()
    process.stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(
        runner,
        settings.http_host,
        settings.http_port,
        reuse_port=_one_of_many(),
    )
    await site.start()
    port = runner.addresses[0][1]
    logger.info("http on port %d", port, extra={"port": port})

    async def drain(_: float) -> None:
        await runner.cleanup()

    process.run(rpc_client.run())
    process.run(publisher.run())
    process.run(wakes.run())
    process.run(keep_publishing(publisher))
    process.run(watch_scheduler(rpc_client, process.health))
    process.on_drain(drain)


def application(
    deps: Dependencies, security: SecuritySettings, declared: Topology, health: Health
) -> web.Application:
    """Return the application with every route."""
    settings = deps.settings
    authenticator = Authenticator(
        TicketVerifier.of(security),
        header=security.ticket_header,
        anonymous=settings.anonymous,
        operators=security.operators,
    )
    admit = _admission(authenticator, settings.rate_limit)
    app = web.Application(
        middlewares=[middleware(trust_traceparent=settings.trust_traceparent)],
        client_max_size=settings.max_batch_bytes,
    )
    app.on_shutdown.append(_end_polls(deps.waiters))
    routes = all_routes(settings.example_url)
    for path in dict.fromkeys(route.path for route in routes):
        on_path = [route for route in routes if route.path == path]
        app.add_routes(_bound(route, admit, deps) for route in on_path)
        app.add_routes([_other_methods(path, on_path)])
    openapi = document(routes, about(security.ticket_header))
    app.add_routes(docs_page.routes(openapi, asyncapi(declared, security.ticket_header)))
    app.add_routes(jwks.routes(security))
    app.add_routes(unsubscribe.routes(deps.services))
    add_routes(app, ready=lambda: (health.ready, health.report()), registry=_registry())
    return app


def _admission(
    authenticator: Authenticator, rate: float | None
) -> Callable[[web.Request], RequestContext]:
    """Return a function that authenticates a request and enforces the rate limit.

    It raises ProblemError: 401, or 429 with the seconds to wait.
    """
    limiter = None if rate is None else RateLimiter(rate)

    def admit(request: web.Request) -> RequestContext:
        context = authenticator.authenticate(request)
        if limiter is None:
            return context
        delay = limiter.delay(context.client_id or "", time.monotonic())
        if delay > 0:
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_requests",
                f"The limit is {rate:g} requests per second.",
                headers={"Retry-After": f"{math.ceil(delay)}"},
            )
        return context

    return admit


def _bound(
    route: Route, admit: Callable[[web.Request], RequestContext], deps: Dependencies
) -> web.RouteDef:
    """Return the aiohttp route: authentication and the query come before the handler.

    A route with a body ignores the query: the URL of a producer may have one. A route with schemes
    of its own needs no service ticket.
    """
    schemas = {each.name: each.schema for each in route.parameters if each.where == "query"}

    async def handle(request: web.Request) -> web.StreamResponse:
        if route.schemes is None:
            context = admit(request)
        else:
            context = RequestContext(None, traceparent_of(request))
        if route.body is None:
            request[QUERY] = parse_query(request, schemas)
        return await route.handler(request, context, deps)

    head = {"allow_head": route.head} if route.method == hdrs.METH_GET else {}
    return web.route(route.method, route.path, handle, expect_handler=on_expect, **head)


def _end_polls(waiters: Waiters) -> Callable[[web.Application], Awaitable[None]]:
    """Return a function that ends all polls and streams, so that their clients reconnect."""

    async def end(_: web.Application) -> None:
        waiters.close()

    return end


def _other_methods(path: str, on_path: Collection[Route]) -> web.RouteDef:
    """Return the route of all methods that the routes on this path do not support.

    Without it, PATCH /v1/callbacks/batch would be PATCH /v1/callbacks/{id}.
    """
    allowed: set[str] = {route.method for route in on_path}
    if any(route.method == hdrs.METH_GET and route.head for route in on_path):
        allowed.add(hdrs.METH_HEAD)

    async def refuse(request: web.Request) -> web.Response:
        raise web.HTTPMethodNotAllowed(request.method, allowed)

    return web.route("*", path, refuse, expect_handler=on_expect)


def _registry() -> CollectorRegistry:
    """Return the metrics of this process, or of all workers."""
    if not _one_of_many():
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def _one_of_many() -> bool:
    """Return whether this is one of several workers that share the port and the metrics."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


SERVICE = Service(SERVICES["gateway"], (GatewaySettings, SecuritySettings), start)
