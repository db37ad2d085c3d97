"""The handlers of `/v1/postings`: HTTP in, a request to mailings, HTTP out.

Bodies are passed on as they came; mailings is the one place that validates what they say.
"""

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from pydantic_core import to_json

from services.gateway.answering import answer
from services.gateway.asking import Service
from services.gateway.callers import Callers
from services.gateway.edge import POSTING_ID, Handler
from services.gateway.reading import idempotency_key, json_body, query, uuid
from services.gateway.settings import GatewaySettings
from shared.contracts.posting_requests import Operation as Asked
from shared.http.problem import Refused


class Postings:
    """What callers can do with their postings."""

    def __init__(self, mailings: Service, callers: Callers, settings: GatewaySettings) -> None:
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
        asker = self._callers.asker(request)
        key = idempotency_key(request)
        body, _ = await json_body(request, self._most)
        asked = b'{"posting":%b,"idempotency_key":%b}' % (body, to_json(key))
        accepted = await self._mailings.ask(Asked.CREATE, asked, asker)
        request[POSTING_ID] = accepted["id"]
        location = f"/v1/postings/{accepted['id']}"
        return answer(accepted, HTTPStatus.ACCEPTED, {"Location": location})

    async def get(self, request: web.Request) -> web.Response:
        """How far one is."""
        asker = self._callers.asker(request)
        query(request, ())
        asked = to_json({"id": _identity(request)})
        return answer(await self._mailings.ask(Asked.GET, asked, asker))

    async def list(self, request: web.Request) -> web.Response:
        """A page of them, or of those that came from an event."""
        asker = self._callers.asker(request)
        asked = to_json(query(request, ("from_event", "cursor", "limit")))
        return answer(await self._mailings.ask(Asked.LIST, asked, asker))

    async def messages(self, request: web.Request) -> web.Response:
        """A page of its messages."""
        asker = self._callers.asker(request)
        asked = query(request, ("status", "cursor", "limit")) | {"id": _identity(request)}
        return answer(await self._mailings.ask(Asked.MESSAGES, to_json(asked), asker))


def _identity(request: web.Request) -> str:
    """The posting that the path names."""
    identity = uuid(request.match_info["id"])
    if identity is None:
        raise Refused(HTTPStatus.NOT_FOUND, "not_found", "there is no such posting")
    request[POSTING_ID] = identity
    return identity
