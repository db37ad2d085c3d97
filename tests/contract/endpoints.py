"""Find every endpoint in the running applications, with its description."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web
from prometheus_client import CollectorRegistry
from yarl import URL

from services.console.app import application as console
from services.console.sign_in.pages import RoleClaim, SignIn
from services.gateway.app import application as gateway
from services.gateway.messenger.limits import Limits
from services.gateway.routes import all_routes
from services.gateway.routes.declaration import Dependencies
from services.gateway.settings import GatewaySettings
from services.sandbox.app import application as sandbox
from services.sandbox.behaviours import MailSettings, SmsSettings
from services.sandbox.inbox import Inbox
from services.sandbox.settings import SandboxSettings
from shared.process.health import Health
from shared.process.metrics import add_routes
from shared.security.settings import SecuritySettings
from shared.topology import topology


@dataclass(frozen=True, order=True)
class Endpoint:
    path: str
    method: str
    description: str


def endpoints() -> dict[str, list[Endpoint]]:
    """Return the endpoints of the applications, by the name of the application."""
    every_service = web.Application()
    add_routes(every_service, ready=lambda: (True, ""), registry=CollectorRegistry())
    settings = GatewaySettings()
    # No handler is called, so none needs a broker.
    none = cast(Any, None)
    unconnected = Dependencies(none, none, settings, Limits(settings), none, none)
    applications = {
        "Every service": every_service,
        "Console": console(
            none, none, none, SignIn(none, none, RoleClaim("", {})), origin="http://127.0.0.1"
        ),
        "Gateway": gateway(unconnected, SecuritySettings(), topology(), Health()),
        "Sandbox": sandbox(
            SandboxSettings(), Inbox(MailSettings()), Inbox(SmsSettings()), URL(), ""
        ),
    }
    summaries: dict[tuple[str, str], str] = {
        (route.method, route.path): route.summary for route in all_routes(settings.example_url)
    }
    return {
        name: sorted(_endpoints(application, summaries))
        for name, application in applications.items()
    }


def _endpoints(
    application: web.Application, summaries: dict[tuple[str, str], str]
) -> Iterator[Endpoint]:
    declared = {path for _, path in summaries}
    for route in application.router.routes():
        assert route.resource is not None
        path, method = route.resource.canonical, route.method
        # aiohttp adds HEAD to GET. Declared routes respond 405 to all other methods.
        if method == "HEAD" or (method == "*" and path in declared):
            continue
        summary = summaries.get((method, path)) or inspect.getdoc(route.handler)
        assert summary, f"the handler of {method} {path} has no docstring"
        yield Endpoint(path, method, summary.partition("\n\n")[0].replace("\n", " ").rstrip("."))
