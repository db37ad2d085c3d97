"""Composition root of the sandbox."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from yarl import URL

from services.sandbox.settings import Settings
from services.sandbox.store import Store
from services.sandbox.webhooks import WebhookReceiver
from shared.process.command import Service
from shared.process.run import Process
from shared.settings import load

logger = logging.getLogger(__name__)

_GRACE = 0.2
"""Seconds that a request in progress may go on at a stop. A hook is answered within milliseconds;
what lasts longer was told to misbehave."""


def application(settings: Settings) -> web.Application:
    """Put the sandbox's HTTP application together, with an empty store of its own."""
    app = web.Application(client_max_size=settings.max_body)
    app.add_routes([web.get("/healthz", _healthz), *WebhookReceiver(Store()).routes()])
    return app


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[URL]:
    """Listen for as long as the context lasts; gives the URL. Stops without waiting for hangs.

    Raises:
        OSError: the address cannot be listened on.
    """
    runner = web.AppRunner(
        application(settings),
        access_log=None,
        # A signature covers the bytes as they were sent.
        auto_decompress=False,
        # A hanging answer ends when its client goes.
        handler_cancellation=True,
        shutdown_timeout=_GRACE,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        host, port = runner.addresses[0][:2]
        yield URL.build(scheme="http", host=host, port=port, path="/")
    finally:
        await runner.cleanup()


async def start(process: Process) -> None:
    """Listen for as long as the process lasts."""
    url = await process.stack.enter_async_context(serving(load(Settings, "sandbox")))
    logger.info("sandbox at %s", url)


async def _healthz(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


SERVICE = Service("services.sandbox", Settings, start, scales=False)
