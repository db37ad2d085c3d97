"""The routes `/v1/endpoints`. Subscriptions validates the fields of their requests."""

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import ENDPOINT_ID
from services.gateway.parsing import (
    QUERY,
    idempotency_key,
    if_match,
    json_body,
)
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    ETAG_HEADER,
    IF_MATCH,
    IF_NONE_MATCH,
    Dependencies,
    Route,
    failures,
    idempotency_header,
    ok,
    pagination,
    path_id,
    problem,
    status_filter,
)
from services.gateway.routes.resources import changed, etag, found, id_in_path, listing
from shared.amqp.rpc import RequestContext
from shared.contracts.endpoint_requests import (
    CHANGE_ENDPOINT,
    CREATE_ENDPOINT,
    DEFAULT_PAGE_SIZE,
    DELETE_ENDPOINT,
    GET_ENDPOINT,
    LIST_ENDPOINT_MESSAGES,
    LIST_ENDPOINTS,
    MAX_PAGE_SIZE,
    DeliveryPage,
    EndpointPage,
)
from shared.contracts.endpoints import (
    DeliveryStatus,
    Endpoint,
    EndpointChange,
    EndpointCreated,
    EndpointStatus,
    NewEndpoint,
)
from shared.http.openapi import Body, Response, link

TAG: Final = "endpoints"

FAILURES: Final = failures(
    "the broker, the database or subscriptions is unreachable",
    "Subscriptions did not respond in time",
)
PAGE: Final = pagination(max_size=MAX_PAGE_SIZE, default_size=DEFAULT_PAGE_SIZE)
NOT_FOUND: Final = {404: problem("The caller has no endpoint with this id.")}
PRECONDITION_FAILED: Final = {412: problem("The endpoint has changed since its `ETag` was read.")}
_NOT_MODIFIED: Final = {304: Response("The endpoint still has this `ETag`.", headers=ETAG_HEADER)}
ID: Final = path_id("endpoint", examples.ID)
_ENDPOINT: Final = {
    "id": examples.ID,
    "url": "https://customer.example.com/webhooks",
    "event_types": ["invoice.*"],
    "description": "Billing",
    "headers": {"X-Tenant": "7"},
    "rate_limit": 20,
    "ordered": False,
    "fingerprint": None,
    "status": "active",
    "failing_since": None,
    "created_at": "2026-11-20T12:00:00Z",
    "updated_at": "2026-11-20T12:00:00Z",
    "etag": '"1"',
}
SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - public
DELIVERY: Final = {
    "endpoint_id": examples.ID,
    "message_id": "invoice-7-paid",
    "event_type": "invoice.paid",
    "status": "delivered",
    "attempts": 1,
    "last_error": None,
    "next_at": None,
    "created_at": "2026-11-20T12:00:00Z",
    "finished_at": "2026-11-20T12:00:01Z",
}
FOUND: Final = replace(ok("The endpoint.", Endpoint, _ENDPOINT), headers=ETAG_HEADER)
_CREATE: Final = {
    "All invoices": {
        "url": "https://customer.example.com/webhooks",
        "event_types": ["invoice.*"],
        "description": "Billing",
        "headers": {"X-Tenant": "7"},
        "rate_limit": 20,
    },
    "Everything, in order": {
        "url": "https://customer.example.com/webhooks",
        "event_types": ["*"],
        "ordered": True,
    },
}


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="POST",
            path="/v1/endpoints",
            operation_id="create_endpoint",
            handler=create_endpoint,
            tag=TAG,
            summary="Create an endpoint",
            description="The endpoint receives each message whose event type it selects. Requests"
            " are signed with the secret, as Standard Webhooks. The secret is returned only here.",
            parameters=(
                idempotency_header(
                    "A repeat with the same key and body returns the same endpoint, with its"
                    " secret."
                ),
            ),
            body=Body(NewEndpoint, _CREATE),
            responses={
                201: Response(
                    "Created.",
                    Body(EndpointCreated, {"Response": {**_ENDPOINT, "secret": SECRET}}),
                    {"Location": "The URL of the endpoint.", **ETAG_HEADER},
                    {
                        name: link(name, text, id="$response.body#/id")
                        for name, text in (
                            ("get_endpoint", "The endpoint."),
                            ("delete_endpoint", "Delete it."),
                            ("list_endpoint_messages", "Its messages."),
                        )
                    },
                ),
                409: problem(
                    "The Idempotency-Key was used with a different body, or the caller has too"
                    " many endpoints."
                ),
                **BODY_FAILURES,
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/endpoints",
            operation_id="list_endpoints",
            handler=listing(LIST_ENDPOINTS),
            tag=TAG,
            summary="List endpoints",
            description="Only those of the caller.",
            parameters=(status_filter([status.value for status in EndpointStatus]), *PAGE),
            responses={
                200: ok(
                    "A page of endpoints, newest first.",
                    EndpointPage,
                    {"items": [_ENDPOINT], "next_cursor": None},
                ),
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/endpoints/{id}",
            operation_id="get_endpoint",
            handler=get_endpoint,
            tag=TAG,
            summary="Get an endpoint",
            description="Endpoints of another caller do not exist for you.",
            parameters=(ID, IF_NONE_MATCH),
            responses={200: FOUND, **_NOT_MODIFIED, **NOT_FOUND, **FAILURES},
        ),
        Route(
            method="PATCH",
            path="/v1/endpoints/{id}",
            operation_id="change_endpoint",
            handler=change_endpoint,
            tag=TAG,
            summary="Change an endpoint",
            description="A new URL, fingerprint and headers also apply to messages that wait. New"
            " event types and a new rate apply only to later messages. `status` pauses or resumes"
            " the endpoint. After a change of `status` or `ordered`, waiting messages follow in"
            " the background.",
            parameters=(ID, IF_MATCH),
            body=Body(
                EndpointChange,
                {
                    "Other event types": {"event_types": ["invoice.paid", "order.*"]},
                    "Without a rate limit": {"rate_limit": None},
                    "Enable": {"status": "active"},
                },
            ),
            responses={
                200: FOUND,
                **NOT_FOUND,
                **PRECONDITION_FAILED,
                **BODY_FAILURES,
                **FAILURES,
            },
        ),
        Route(
            method="DELETE",
            path="/v1/endpoints/{id}",
            operation_id="delete_endpoint",
            handler=delete_endpoint,
            tag=TAG,
            summary="Delete an endpoint",
            description="Its unfinished deliveries become `cancelled`.",
            parameters=(ID, IF_MATCH),
            responses={
                204: Response("Deleted."),
                **NOT_FOUND,
                **PRECONDITION_FAILED,
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/endpoints/{id}/messages",
            operation_id="list_endpoint_messages",
            handler=list_endpoint_messages,
            tag=TAG,
            summary="List the messages of an endpoint",
            description="Each with its status at this endpoint.",
            parameters=(ID, status_filter([status.value for status in DeliveryStatus]), *PAGE),
            responses={
                200: ok(
                    "A page of messages, newest first.",
                    DeliveryPage,
                    {"items": [DELIVERY], "next_cursor": None},
                ),
                **NOT_FOUND,
                **FAILURES,
            },
        ),
    )


async def create_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Create an endpoint; respond after it is committed."""
    key = idempotency_key(request)
    endpoint, _ = await json_body(request, deps.settings.max_body_bytes)
    body = b'{"endpoint":%b,"idempotency_key":%b}' % (endpoint, to_json(key))
    created = await deps.services.request(CREATE_ENDPOINT, body, context)
    request[ENDPOINT_ID] = created["id"]
    location = {"Location": f"/v1/endpoints/{created['id']}"}
    return json_response(created, HTTPStatus.CREATED, location | etag(created))


async def get_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return an endpoint."""
    return await found(request, context, deps, GET_ENDPOINT, {"id": endpoint_id(request)})


async def change_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Change an endpoint."""
    return await changed(request, context, deps, CHANGE_ENDPOINT, endpoint_id(request), "change")


async def delete_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Delete an endpoint."""
    body = to_json({"id": endpoint_id(request)} | if_match(request))
    await deps.services.request(DELETE_ENDPOINT, body, context)
    return web.Response(status=HTTPStatus.NO_CONTENT)


async def list_endpoint_messages(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of the messages of an endpoint."""
    body = to_json(request[QUERY] | {"id": endpoint_id(request)})
    return json_response(await deps.services.request(LIST_ENDPOINT_MESSAGES, body, context))


def endpoint_id(request: web.Request) -> str:
    """Return the id of the endpoint in the path."""
    return id_in_path(request, ENDPOINT_ID, "endpoint")
