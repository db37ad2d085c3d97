"""Composition root of the sandbox."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from yarl import URL

from services.sandbox.apis import DataApis
from services.sandbox.events import Producers
from services.sandbox.inbox import Inbox, InboxApi
from services.sandbox.inbox_pages import InboxPages
from services.sandbox.mails import mail_json, receiving
from services.sandbox.orders import MailOrder, SmsOrder
from services.sandbox.producers import ProducersApi
from services.sandbox.settings import Settings
from services.sandbox.sms import SmsGateway, sms_json
from services.sandbox.store import Store
from services.sandbox.users import Directory
from services.sandbox.webhooks import WebhookReceiver
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import SERVICES
from shared.settings import load

logger = logging.getLogger(__name__)

_GRACE = 0.2
"""Seconds that a request in progress may go on at a stop. A hook is answered within milliseconds;
what lasts longer was told to misbehave."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a sandbox listens."""

    http: URL
    smtp: URL


@asynccontextmanager
async def serving(
    settings: Settings, amqp_url: str = "amqp://127.0.0.1:5672/"
) -> AsyncIterator[Places]:
    """Listen for as long as the context lasts; gives where. Stops without waiting for hangs.

    Producers publish to ``amqp_url``; nothing else of the sandbox needs it.

    Raises:
        OSError: an address cannot be listened on.
    """
    directory = Directory(settings.users)
    url = URL(settings.url) if settings.url else None
    mails, sms = Inbox(MailOrder()), Inbox(SmsOrder())
    async with AsyncExitStack() as stack:
        smtp = await stack.enter_async_context(
            receiving(mails, settings.host, settings.smtp_port, settings.max_body)
        )
        app = web.Application(client_max_size=settings.max_body)
        app.add_routes(
            [
                web.get("/healthz", _healthz),
                *WebhookReceiver(Store()).routes(),
                *InboxPages(mails, sms, smtp).routes(),
                *InboxApi("/api/mails", mails, mail_json).routes(),
                *SmsGateway(sms, settings.sms_key.get_secret_value()).routes(),
                *InboxApi("/api/sms", sms, sms_json).routes(),
                *DataApis(directory, url).routes(),
                *ProducersApi(Producers(directory), amqp_url, url).routes(),
            ]
        )
        http = await stack.enter_async_context(_answering(app, settings.host, settings.port))
        yield Places(http, smtp)


@asynccontextmanager
async def _answering(app: web.Application, host: str, port: int) -> AsyncIterator[URL]:
    runner = web.AppRunner(
        app,
        access_log=None,
        # A signature covers the bytes as they were sent.
        auto_decompress=False,
        # A hanging answer ends when its client goes.
        handler_cancellation=True,
        shutdown_timeout=_GRACE,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        host, port = runner.addresses[0][:2]
        yield URL.build(scheme="http", host=host, port=port, path="/")
    finally:
        await runner.cleanup()


async def start(process: Process) -> None:
    """Listen for as long as the process lasts."""
    settings = load(Settings, "sandbox")
    places = await process.stack.enter_async_context(serving(settings, process.settings.amqp_url))
    logger.info("sandbox at %s", places.http)
    logger.info("sandbox takes mail at %s", places.smtp)


async def _healthz(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


SERVICE = Service(SERVICES["sandbox"], Settings, start)
