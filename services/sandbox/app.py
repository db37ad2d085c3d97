"""Composition root of the sandbox."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from yarl import URL

from services.sandbox.apis import DataApis
from services.sandbox.behaviours import MailSettings, SmsSettings
from services.sandbox.events import Producers
from services.sandbox.inbox import Inbox, InboxApi
from services.sandbox.inbox_pages import InboxPages
from services.sandbox.mails import mail_json, smtp_server
from services.sandbox.openid import OpenIdProvider
from services.sandbox.openid_tokens import Tokens
from services.sandbox.producers import ProducersApi
from services.sandbox.settings import SandboxSettings
from services.sandbox.sms import SmsGateway, sms_json
from services.sandbox.store import Store
from services.sandbox.users import Directory
from services.sandbox.webhooks import WebhookReceiver
from shared.http.server import AppRunner
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import SERVICES
from shared.settings import load

logger = logging.getLogger(__name__)

# Seconds to finish requests in progress when the sandbox stops. A usual response takes
# milliseconds; a longer one is a behaviour such as a hang.
_STOP_TIMEOUT = 0.2


@dataclass(frozen=True, slots=True)
class SandboxUrls:
    """The addresses that a sandbox listens on."""

    http: URL
    smtp: URL


@asynccontextmanager
async def serving(
    settings: SandboxSettings, amqp_url: str = "amqp://127.0.0.1:5672/"
) -> AsyncIterator[SandboxUrls]:
    """Run the sandbox for as long as the context lasts. It stops without waiting for hangs.

    Only the producers use `amqp_url`.

    Raises:
        OSError: cannot listen on an address.
    """
    mails, sms = Inbox(MailSettings()), Inbox(SmsSettings())
    async with AsyncExitStack() as stack:
        smtp = await stack.enter_async_context(
            smtp_server(mails, settings.host, settings.smtp_port, settings.max_body)
        )
        app = application(settings, mails, sms, smtp, amqp_url)
        http = await stack.enter_async_context(_http_server(app, settings.host, settings.port))
        yield SandboxUrls(http, smtp)


def application(
    settings: SandboxSettings,
    mails: Inbox[MailSettings],
    sms: Inbox[SmsSettings],
    smtp: URL,
    amqp_url: str,
) -> web.Application:
    """Return the application with every route."""
    directory = Directory(settings.users)
    url = URL(settings.url) if settings.url else None
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
            *OpenIdProvider(Tokens(), url, settings.oidc_secret.get_secret_value()).routes(),
        ]
    )
    return app


@asynccontextmanager
async def _http_server(app: web.Application, host: str, port: int) -> AsyncIterator[URL]:
    runner = AppRunner(
        app,
        access_log=None,
        # A signature covers the bytes as sent.
        auto_decompress=False,
        # A hang ends when its client closes the connection.
        handler_cancellation=True,
        shutdown_timeout=_STOP_TIMEOUT,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        host, port = runner.addresses[0][:2]
        yield URL.build(scheme="http", host=host, port=port, path="/")
    finally:
        await runner.cleanup()


async def start(process: Process) -> None:
    """Run the sandbox for as long as the process lasts."""
    settings = load(SandboxSettings)
    urls = await process.stack.enter_async_context(serving(settings, process.settings.amqp_url))
    logger.info("sandbox started at %s, mail server at %s", urls.http, urls.smtp)


async def _healthz(_request: web.Request) -> web.Response:
    """Return 200 while the sandbox runs."""
    return web.json_response({"status": "ok"})


SERVICE = Service(SERVICES["sandbox"], (SandboxSettings,), start)
