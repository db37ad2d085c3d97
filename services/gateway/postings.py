"""The handlers of `/v1/postings`: HTTP in, a request to mailings, HTTP out.

Bodies are passed on as they came; mailings is the one place that validates what they say.
"""

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from pydantic_core import to_json

from services.gateway.auth import Authenticator
from services.gateway.middleware import POSTING_ID, Handler
from services.gateway.parsing import idempotency_key, json_body, query, uuid
from services.gateway.responses import json_response
from services.gateway.rpc import ServiceClient
from services.gateway.settings import GatewaySettings
from shared.contracts.posting_requests import Operation as Asked
from shared.http.problem import ProblemError


class Postings:
    """What callers can do with their postings."""

    def __init__(
        self, mailings: ServiceClient, callers: Authenticator, settings: GatewaySettings
    ) -> None:
        self._mailings = mailings
        self._callers = callers
        self._most = settings.max_body_bytes

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By the ids of the operations."""
        return {
            "create_posting": self.create,
            "get_posting": self.get,
            "list_postings": self.list,
            "list_posting_messages": self.messages,
        }

    async def create(self, request: web.Request) -> web.Response:
        """Have one taken in; answered once it is committed."""
        context = self._callers.context(request)
        key = idempotency_key(request)
        body, _ = await json_body(request, self._most)
        asked = b'{"posting":%b,"idempotency_key":%b}' % (body, to_json(key))
        accepted = await self._mailings.ask(Asked.CREATE, asked, context)
        request[POSTING_ID] = accepted["id"]
        location = f"/v1/postings/{accepted['id']}"
        return json_response(accepted, HTTPStatus.ACCEPTED, {"Location": location})

    async def get(self, request: web.Request) -> web.Response:
        """How far one is."""
        context = self._callers.context(request)
        query(request, ())
        asked = to_json({"id": _identity(request)})
        return json_response(await self._mailings.ask(Asked.GET, asked, context))

    async def list(self, request: web.Request) -> web.Response:
        """A page of them, or of those that came from an event."""
        context = self._callers.context(request)
        asked = to_json(query(request, ("from_event", "cursor", "limit")))
        return json_response(await self._mailings.ask(Asked.LIST, asked, context))

    async def messages(self, request: web.Request) -> web.Response:
        """A page of its messages."""
        context = self._callers.context(request)
        asked = query(request, ("status", "cursor", "limit")) | {"id": _identity(request)}
        return json_response(await self._mailings.ask(Asked.MESSAGES, to_json(asked), context))


def _identity(request: web.Request) -> str:
    """The posting that the path names."""
    identity = uuid(request.match_info["id"])
    if identity is None:
        raise ProblemError(HTTPStatus.NOT_FOUND, "not_found", "there is no such posting")
    request[POSTING_ID] = identity
    return identity
