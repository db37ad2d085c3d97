"""The composition root of the console: the only module that constructs objects."""

import logging
import os
import socket

import aiohttp
from aiohttp import web

from services.console.feeds import Feeds
from services.console.middleware import bound, middleware
from services.console.pages import all_pages, navigation
from services.console.rendering import asset_route, assets, environment
from services.console.security import header_setter
from services.console.settings import ConsoleSettings
from services.console.sign_in.pages import RoleClaim, SignIn
from services.console.sign_in.provider import Provider
from services.console.sign_in.sessions import Sessions
from services.console.visit import Site
from shared.amqp.publisher import Publisher
from shared.amqp.rpc_client import RpcClient
from shared.errors import RingbackError
from shared.http.server import AppRunner
from shared.http.service_client import ServiceClient
from shared.postgres.migrations import Schema
from shared.postgres.pool import Database
from shared.process.command import Service
from shared.process.run import Process, drain_time
from shared.registry import SERVICES
from shared.settings import load
from shared.topology import EVENTS, topology

logger = logging.getLogger(__name__)

SCHEMA = Schema.of("services.console")


class MissingIssuerError(RingbackError):
    """The OpenID provider is not configured."""

    exit_code = 2


async def start(process: Process) -> None:
    """Construct the console and start it.

    Raises:
        MissingIssuerError: the OpenID provider is not configured.
    """
    settings = load(ConsoleSettings)
    if settings.oidc_issuer is None:
        raise MissingIssuerError(
            "Cannot start console: RINGBACK_OIDC_ISSUER is not set, so nobody could sign in. Set"
            " it to the issuer of your OpenID provider. `ringback up` uses that of the sandbox."
        )
    name = f"ringback console {socket.gethostname()}"
    rpc_client = RpcClient(process.settings.amqp_url, name=name, health=process.health)
    publisher = Publisher(
        process.settings.amqp_url,
        name=f"{name}, events",
        topology=topology(process.settings.queue_type).only((EVENTS,)),
        health=process.health,
    )
    database = Database(
        process.settings.database_url or "",  # start-up has checked that it is set
        name=name,
        health=process.health,
        schema=SCHEMA,
    )
    sessions = Sessions(database, idle=settings.session_idle, lifetime=settings.session_lifetime)
    # No cookies: the console is one client for all of its users.
    http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
    await process.stack.enter_async_context(http)
    sign_in = SignIn(
        Provider.of(settings, settings.oidc_issuer, http),
        sessions,
        RoleClaim(settings.oidc_role_claim, dict(settings.oidc_roles)),
        address_header=settings.address_header,
    )
    listening = listen(settings.host, settings.port)
    process.stack.callback(listening.close)
    port = listening.getsockname()[1]
    app = application(
        ServiceClient(rpc_client, timeout=settings.request_timeout),
        publisher,
        sessions,
        sign_in,
        origin=settings.url or f"http://127.0.0.1:{port}",
    )
    runner = AppRunner(
        app,
        access_log=None,
        auto_decompress=False,  # a small body cannot become a large one
        shutdown_timeout=drain_time(process.settings.shutdown_timeout),
    )
    await runner.setup()
    process.stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listening).start()
    logger.info("console on port %d", port, extra={"port": port})

    async def drain(_: float) -> None:
        await runner.cleanup()

    for part in (rpc_client, publisher, database):
        process.run(part.run())
    process.run(_clean(database, sessions))
    process.on_drain(drain)


def application(
    services: ServiceClient,
    publisher: Publisher,
    sessions: Sessions,
    sign_in: SignIn,
    *,
    origin: str,
) -> web.Application:
    """Return the application with every page. Browsers reach it at `origin`."""
    files, feeds = assets(), Feeds()
    pages = (*all_pages(), *sign_in.pages())
    site = Site(
        origin,
        services,
        environment(),
        navigation(pages),
        {name: asset.url for name, asset in files.items()},
        feeds,
        publisher,
    )
    app = web.Application(middlewares=[middleware(site, pages)])
    app.on_shutdown.append(feeds.close)
    app.on_response_prepare.append(header_setter(origin))
    app.add_routes([bound(page, site, sessions) for page in pages])
    app.add_routes([asset_route(files)])
    return app


async def _clean(database: Database, sessions: Sessions) -> None:
    await database.ready()
    await sessions.run()


def listen(host: str, port: int) -> socket.socket:
    """Return the listening socket. Its port must be known before the pages are built."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ  # one of several workers
    return socket.create_server((host, port), family=family, reuse_port=shared)


SERVICE = Service(
    SERVICES["console"],
    (ConsoleSettings,),
    start,
    required={
        (ConsoleSettings, "oidc_issuer"): "Set it to the issuer of your OpenID provider, at which"
        " users sign in. `ringback up` uses that of the sandbox."
    },
)
