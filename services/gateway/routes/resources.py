"""Shared parts of the handlers of resources: ids in paths, entity tags, forwarded requests."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web
from pydantic_core import to_json

from services.gateway.parsing import (
    QUERY,
    entity_tags,
    if_match,
    json_body,
    matches,
    parse_uuid,
)
from services.gateway.responses import json_response
from services.gateway.routes.declaration import Dependencies, Handler
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import RpcOperation
from shared.http.service_client import not_found


def id_in_path(request: web.Request, key: web.RequestKey[str], resource: str) -> str:
    """Return the id in the path, and store it under `key` for the log line.

    resource: the name of the kind of resource, for the error.

    Raises:
        ProblemError: 404; it is not a valid id, so there is no such resource.
    """
    id_ = parse_uuid(request.match_info["id"])
    if id_ is None:
        raise not_found(f"the {resource} does not exist")
    request[key] = id_
    return id_


def etag(resource: Mapping[str, Any]) -> dict[str, str]:
    """Return the header with the entity tag of a resource."""
    return {"ETag": str(resource["etag"])}


def listing(operation: RpcOperation[Any]) -> Handler:
    """Return a handler that forwards the query, and returns a page."""

    async def handle(
        request: web.Request, context: RequestContext, deps: Dependencies
    ) -> web.Response:
        body = to_json(request[QUERY])
        return json_response(await deps.services.request(operation, body, context))

    return handle


def passed_on(operation: RpcOperation[Any]) -> Handler:
    """Return a handler that forwards the body, and returns the response."""

    async def handle(
        request: web.Request, context: RequestContext, deps: Dependencies
    ) -> web.Response:
        body, _ = await json_body(request, deps.settings.max_body_bytes)
        return json_response(await deps.services.request(operation, body, context))

    return handle


async def found(
    request: web.Request,
    context: RequestContext,
    deps: Dependencies,
    operation: RpcOperation[Any],
    selector: Mapping[str, Any],
) -> web.Response:
    """Return the resource that a selector names, or 304 if the caller has its current state."""
    known = entity_tags(request, hdrs.IF_NONE_MATCH)
    resource = await deps.services.request(operation, to_json(selector), context)
    headers = etag(resource)
    if matches(known, headers["ETag"]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return json_response(resource, headers=headers)


async def changed(  # noqa: PLR0913, PLR0917 - the parts of a request
    request: web.Request,
    context: RequestContext,
    deps: Dependencies,
    operation: RpcOperation[Any],
    id_: str,
    field: str,
) -> web.Response:
    """Change a resource, and return it. The body is sent as `field` of the request."""
    tags = to_json(if_match(request).get("if_match"))
    change, _ = await json_body(request, deps.settings.max_body_bytes)
    body = b'{"id":%b,"%b":%b,"if_match":%b}' % (to_json(id_), field.encode(), change, tags)
    resource = await deps.services.request(operation, body, context)
    return json_response(resource, headers=etag(resource))
