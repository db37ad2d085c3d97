"""The route of the public keys that verify Ringback's tickets."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web
from pydantic_core import to_json

from shared.security.jwks import published_jwks, signing_keys
from shared.security.settings import SecuritySettings

# A receiver that meets an unknown kid reads the keys again, so a longer time would not help.
_HEADERS: Final = {"Cache-Control": "public, max-age=300"}


def routes(settings: SecuritySettings) -> Sequence[web.RouteDef]:
    """Return the route. It needs no ticket, and is empty without a signing key."""
    key = settings.ticket_signing_key
    keys = () if key is None else signing_keys(key.get_secret_value())
    body = to_json(published_jwks(keys))

    async def jwks(_: web.Request) -> web.Response:
        """Return the public keys that verify Ringback's tickets."""
        return web.Response(body=body, content_type="application/json", headers=_HEADERS)

    return [web.get("/.well-known/jwks.json", jwks)]
