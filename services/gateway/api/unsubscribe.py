"""The page behind the unsubscribe links of e-mails, and its one-click POST (RFC 8058).

Mail programs and virus scanners open links, so GET only shows a button.
"""

from collections.abc import Sequence
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from services.gateway.parsing import invalid, read_body
from shared.amqp.rpc import RequestContext
from shared.contracts.context import field_errors
from shared.contracts.posting_requests import CHANGE_SUBSCRIPTION, ChangeSubscription
from shared.http.service_client import ServiceClient
from shared.http.tracing import traceparent_of

# RFC 8058 defines a body of 26 bytes, or the same as multipart/form-data.
MAX_BODY_BYTES: Final = 4096
# The link contains a token: it must not reach other sites, caches or search engines.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Robots-Tag": "noindex",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body {{ font: 1.1em/1.5 sans-serif; max-width: 32em; margin: 4em auto; padding: 0 1em }}
button {{ font: inherit; padding: .4em 1em }}</style>
<h1>{title}</h1>
<p>{text}
<form method="post"><button name="subscribed" value="{value}">{button}</button></form>
"""
_QUESTION: Final = _PAGE.format(
    title="Unsubscribe",
    text="You will get no more e-mails of this kind.",
    value="no",
    button="Unsubscribe",
)
_UNSUBSCRIBED: Final = _PAGE.format(
    title="You are unsubscribed",
    text="You will get no more e-mails of this kind. One that is already on its way can still"
    " arrive.",
    value="yes",
    button="Subscribe again",
)
_SUBSCRIBED: Final = _PAGE.format(
    title="You are subscribed",
    text="You will get e-mails of this kind again.",
    value="no",
    button="Unsubscribe",
)


def routes(services: ServiceClient) -> Sequence[web.RouteDef]:
    """Return the routes. The signed token in the link is the only authorisation."""

    async def show(_: web.Request) -> web.Response:
        """Return the page with the button that unsubscribes."""
        return _page(_QUESTION)

    async def change(request: web.Request) -> web.Response:
        """Unsubscribe, or subscribe again with that button. A repeat changes nothing."""
        subscribed = await read_body(request, MAX_BODY_BYTES) == b"subscribed=yes"
        try:
            command = ChangeSubscription(
                token=request.query.get("token", ""), subscribed=subscribed
            )
        except ValidationError as error:
            raise invalid(field_errors(error)) from None
        context = RequestContext(None, traceparent_of(request))
        await services.request(CHANGE_SUBSCRIPTION, command.model_dump_json().encode(), context)
        return _page(_SUBSCRIBED if subscribed else _UNSUBSCRIBED)

    return [web.get("/v1/unsubscribe", show), web.post("/v1/unsubscribe", change)]


def _page(html: str) -> web.Response:
    return web.Response(text=html, content_type="text/html", headers=_HEADERS)
