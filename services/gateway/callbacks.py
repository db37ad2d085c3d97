"""The handlers of `/v1/callbacks` and `/v1/groups`: HTTP in, a request to the scheduler, HTTP out.

Bodies are passed on as they came; the scheduler is the one place that validates what they say.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web
from pydantic_core import to_json

from services.gateway.auth import Authenticator
from services.gateway.middleware import SCHEDULE_ID, Handler
from services.gateway.parsing import (
    IDEMPOTENCY_KEY,
    idempotency_key,
    invalid,
    json_body,
    query,
    uuid,
)
from services.gateway.responses import json_response
from services.gateway.rpc import ServiceClient
from services.gateway.settings import GatewaySettings
from shared.contracts.requests import FieldError
from shared.contracts.schedule_requests import Operation as Asked
from shared.http.problem import ProblemError

_SELECTORS: Final = ("id", "group_key", "event_key")
_PAGE: Final = ("status", "cursor", "limit")


class Callbacks:
    """What callers can do with their callbacks."""

    def __init__(
        self, scheduler: ServiceClient, callers: Authenticator, settings: GatewaySettings
    ) -> None:
        self._scheduler = scheduler
        self._callers = callers
        self._most = settings.max_body_bytes
        self._most_in_batch = settings.max_batch_bytes

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By the ids of the operations."""
        return {
            "create_callback": self.create,
            "add_callback": self.create,
            "create_callbacks": self.create_batch,
            "list_callbacks": self.list,
            "get_callback": self.get,
            "reschedule_callback": self.reschedule,
            "cancel_callback": self.cancel,
            "retry_callbacks": self.retry,
            "list_group": self.list,
            "cancel_group": self.cancel,
            "get_event": self.get,
            "reschedule_event": self.reschedule,
            "cancel_event": self.cancel,
        }

    async def create(self, request: web.Request) -> web.Response:
        """Schedule one; answered once it is committed."""
        context = self._callers.context(request)
        key = idempotency_key(request)
        body, _ = await json_body(request, self._most)
        asked = b'{"callback":%b,"idempotency_key":%b}' % (body, to_json(key))
        created = await self._scheduler.ask(Asked.CREATE, asked, context)
        request[SCHEDULE_ID] = created["id"]
        return json_response(
            created, HTTPStatus.CREATED, {"Location": f"/v1/callbacks/{quote(created['id'])}"}
        )

    async def create_batch(self, request: web.Request) -> web.Response:
        """Schedule many; each has its own answer."""
        context = self._callers.context(request)
        if IDEMPOTENCY_KEY in request.headers:
            message = "is for a single callback; in a batch, give each its event_key"
            raise invalid([FieldError(field=IDEMPOTENCY_KEY, message=message)])
        body, content = await json_body(request, self._most_in_batch)
        asked = b'{"callbacks":%b}' % body if isinstance(content, list) else body
        return json_response(await self._scheduler.ask(Asked.CREATE_BATCH, asked, context))

    async def get(self, request: web.Request) -> web.Response:
        """The status of one, by id or by keys."""
        return await self._by_selector(Asked.GET, request)

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel one, by id or by keys, or a whole group."""
        return await self._by_selector(Asked.CANCEL, request)

    async def list(self, request: web.Request) -> web.Response:
        """A page of the caller's callbacks; of one group where the path names it."""
        context = self._callers.context(request)
        in_path = _selector(request)
        names = [name for name in (*_SELECTORS[1:], *_PAGE) if name not in in_path]
        asked = to_json(query(request, names) | in_path)
        return json_response(await self._scheduler.ask(Asked.LIST, asked, context))

    async def reschedule(self, request: web.Request) -> web.Response:
        """Move one to another moment, by id or by keys."""
        context = self._callers.context(request)
        selector = _selector(request)
        _, content = await json_body(request, self._most)
        if not isinstance(content, dict):
            raise invalid([FieldError(field="", message="Input should be an object")])
        twice = [
            FieldError(field=name, message="is named by the path")
            for name in _SELECTORS
            if name in content
        ]
        if twice:
            raise invalid(twice)
        asked = to_json(content | selector)
        return _typed(await self._scheduler.ask(Asked.RESCHEDULE, asked, context))

    async def retry(self, request: web.Request) -> web.Response:
        """Start failed ones again."""
        context = self._callers.context(request)
        body, _ = await json_body(request, self._most)
        return json_response(await self._scheduler.ask(Asked.RETRY, body, context))

    async def _by_selector(self, operation: str, request: web.Request) -> web.Response:
        context = self._callers.context(request)
        query(request, ())
        asked = to_json(_selector(request))
        return _typed(await self._scheduler.ask(operation, asked, context))


def _selector(request: web.Request) -> dict[str, str]:
    """The callbacks that the path names; it names one id, or a group, or an event in a group."""
    selector = dict(request.match_info)
    if "id" in selector:
        identity = uuid(selector["id"])
        if identity is None:
            raise _not_found()
        request[SCHEDULE_ID] = selector["id"] = identity
    return selector


def _not_found() -> ProblemError:
    return ProblemError(
        HTTPStatus.NOT_FOUND,
        "not_found",
        "there is no such callback",
        members={"result": "not_found"},
    )


def _typed(value: Any) -> web.Response:
    """An answer whose `result` says what became of it; not found is 404 as everywhere."""
    if value.get("result") == "not_found":
        raise _not_found()
    return json_response(value)
