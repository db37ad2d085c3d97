"""The routes `/v1/endpoints`. Subscriptions validates the fields of their requests."""

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import ENDPOINT_ID, MESSAGE_ID
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
    Handler,
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
    LIST_REPLAYS,
    MAX_PAGE_SIZE,
    PAUSE_ENDPOINT,
    REPLAY_ENDPOINT,
    RESUME_ENDPOINT,
    ROTATE_SECRET,
    TEST_ENDPOINT,
    ControlEndpoint,
    DeliveryPage,
    EndpointPage,
    EndpointTested,
    ReplayPage,
    ReplayStarted,
    SecretRotated,
)
from shared.contracts.endpoints import (
    DeliveryStatus,
    Endpoint,
    EndpointChange,
    EndpointCreated,
    EndpointStatus,
    NewEndpoint,
    Replay,
)
from shared.contracts.requests import RpcOperation
from shared.http.openapi import Body, Response, link

TAG: Final = "endpoints"

FAILURES: Final = failures(
    "the broker, the database or subscriptions is unreachable",
    "Subscriptions did not respond in time",
)
PAGE: Final = pagination(max_size=MAX_PAGE_SIZE, default_size=DEFAULT_PAGE_SIZE)
_NOT_FOUND: Final = {404: problem("The caller has no endpoint with this id.")}
_PRECONDITION_FAILED: Final = {412: problem("The endpoint has changed since its `ETag` was read.")}
_NOT_MODIFIED: Final = {304: Response("The endpoint still has this `ETag`.", headers=ETAG_HEADER)}
_DISABLED: Final = {409: problem("The endpoint is disabled.")}
_ID: Final = path_id("endpoint", examples.ID)
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
_SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - public
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
_REPLAY: Final = {
    "id": examples.ID,
    "since": "2026-11-20T12:00:00Z",
    "until": "2026-11-21T12:00:00Z",
    "replayed": 120,
    "created_at": "2026-11-21T12:00:00Z",
    "finished_at": None,
}
_FOUND: Final = replace(ok("The endpoint.", Endpoint, _ENDPOINT), headers=ETAG_HEADER)
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
                    Body(EndpointCreated, {"Response": {**_ENDPOINT, "secret": _SECRET}}),
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
            parameters=(_ID, IF_NONE_MATCH),
            responses={200: _FOUND, **_NOT_MODIFIED, **_NOT_FOUND, **FAILURES},
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
            parameters=(_ID, IF_MATCH),
            body=Body(
                EndpointChange,
                {
                    "Other event types": {"event_types": ["invoice.paid", "order.*"]},
                    "Without a rate limit": {"rate_limit": None},
                    "Enable": {"status": "active"},
                },
            ),
            responses={
                200: _FOUND,
                **_NOT_FOUND,
                **_PRECONDITION_FAILED,
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
            parameters=(_ID, IF_MATCH),
            responses={
                204: Response("Deleted."),
                **_NOT_FOUND,
                **_PRECONDITION_FAILED,
                **FAILURES,
            },
        ),
        *(
            Route(
                method="POST",
                path=f"/v1/endpoints/{{id}}/{name}",
                operation_id=f"{name}_endpoint",
                handler=_control(operation),
                tag=TAG,
                summary=summary,
                description=description,
                parameters=(_ID, IF_MATCH),
                responses={200: _FOUND, **_NOT_FOUND, **_PRECONDITION_FAILED, **FAILURES},
            )
            for name, operation, summary, description in _CONTROLS
        ),
        Route(
            method="POST",
            path="/v1/endpoints/{id}/rotate-secret",
            operation_id="rotate_secret",
            handler=rotate_secret,
            tag=TAG,
            summary="Rotate the secret",
            description="Requests are signed with the new secret and, for a day, also with the old"
            " one. Only these two sign: after a second rotation within a day, the first secret"
            " ends at once.",
            parameters=(
                _ID,
                IF_MATCH,
                idempotency_header("A repeat with the same key returns the same secret."),
            ),
            responses={
                200: ok(
                    "The new secret, which is returned only here.",
                    SecretRotated,
                    {"secret": _SECRET, "old_secret_until": "2026-11-21T12:00:00Z"},
                ),
                **_NOT_FOUND,
                **_PRECONDITION_FAILED,
                **FAILURES,
            },
        ),
        Route(
            method="POST",
            path="/v1/endpoints/{id}/test",
            operation_id="test_endpoint",
            handler=test_endpoint,
            tag=TAG,
            summary="Send a test message",
            description="Sends a message with the event type `endpoint.test` to this endpoint only,"
            " even if it does not select this type. Its attempts show the result.",
            parameters=(_ID,),
            responses={
                202: ok(
                    "The message is stored.", EndpointTested, {"message_id": "msg_0b0c3f0e5d0b"}
                ),
                **_NOT_FOUND,
                **_DISABLED,
                **FAILURES,
            },
        ),
        Route(
            method="POST",
            path="/v1/endpoints/{id}/replay",
            operation_id="replay_endpoint",
            handler=replay_endpoint,
            tag=TAG,
            summary="Send messages again",
            description="Sends either one message, or all that failed at or after `since` and"
            " before `until` (default: now). Each is sent once more, at a bounded rate, with the"
            " same id.",
            parameters=(_ID,),
            body=Body(
                Replay,
                {
                    "All that failed": {"since": "2026-11-20T12:00:00Z"},
                    "One message": {"message_id": "invoice-7-paid"},
                },
            ),
            responses={
                202: ok("The replay is stored.", ReplayStarted, {"id": examples.ID}),
                404: problem("The caller has no such endpoint, or it has no such message."),
                **_DISABLED,
                **BODY_FAILURES,
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/endpoints/{id}/replays",
            operation_id="list_replays",
            handler=list_replays,
            tag=TAG,
            summary="List the replays of an endpoint",
            description="Those of an interval, each with the number of messages that it has sent"
            " so far. `finished_at` is null while it runs.",
            parameters=(_ID, *PAGE),
            responses={
                200: ok(
                    "A page of replays, newest first.",
                    ReplayPage,
                    {"items": [_REPLAY], "next_cursor": None},
                ),
                **_NOT_FOUND,
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
            parameters=(_ID, status_filter([status.value for status in DeliveryStatus]), *PAGE),
            responses={
                200: ok(
                    "A page of messages, newest first.",
                    DeliveryPage,
                    {"items": [DELIVERY], "next_cursor": None},
                ),
                **_NOT_FOUND,
                **FAILURES,
            },
        ),
    )


_CONTROLS: Final = (
    (
        "pause",
        PAUSE_ENDPOINT,
        "Pause an endpoint",
        "Messages wait until the endpoint is resumed, and so do new ones.",
    ),
    (
        "resume",
        RESUME_ENDPOINT,
        "Resume an endpoint",
        (
            "Messages that wait are sent in the order of their creation. A disabled endpoint"
            " becomes active. A replay then sends what it missed."
        ),
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
    return await found(request, context, deps, GET_ENDPOINT, {"id": _endpoint_id(request)})


async def change_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Change an endpoint."""
    return await changed(request, context, deps, CHANGE_ENDPOINT, _endpoint_id(request), "change")


async def delete_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Delete an endpoint."""
    body = to_json({"id": _endpoint_id(request)} | if_match(request))
    await deps.services.request(DELETE_ENDPOINT, body, context)
    return web.Response(status=HTTPStatus.NO_CONTENT)


def _control(operation: RpcOperation[ControlEndpoint]) -> Handler:
    async def control(
        request: web.Request, context: RequestContext, deps: Dependencies
    ) -> web.Response:
        body = to_json({"id": _endpoint_id(request)} | if_match(request))
        endpoint = await deps.services.request(operation, body, context)
        return json_response(endpoint, headers=etag(endpoint))

    return control


async def rotate_secret(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Replace the secret of an endpoint, and return the new one."""
    fields = {"id": _endpoint_id(request), "idempotency_key": idempotency_key(request)}
    body = to_json(fields | if_match(request))
    return json_response(await deps.services.request(ROTATE_SECRET, body, context))


async def test_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send a test message; respond after it is committed."""
    body = to_json({"id": _endpoint_id(request)})
    tested = await deps.services.request(TEST_ENDPOINT, body, context)
    request[MESSAGE_ID] = tested["message_id"]
    return json_response(tested, HTTPStatus.ACCEPTED)


async def replay_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send messages again; respond after the replay is committed."""
    id_ = to_json(_endpoint_id(request))
    replay, _ = await json_body(request, deps.settings.max_body_bytes)
    body = b'{"id":%b,"replay":%b}' % (id_, replay)
    started = await deps.services.request(REPLAY_ENDPOINT, body, context)
    return json_response(started, HTTPStatus.ACCEPTED)


async def list_replays(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of the replays of an endpoint."""
    body = to_json(request[QUERY] | {"id": _endpoint_id(request)})
    return json_response(await deps.services.request(LIST_REPLAYS, body, context))


async def list_endpoint_messages(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of the messages of an endpoint."""
    body = to_json(request[QUERY] | {"id": _endpoint_id(request)})
    return json_response(await deps.services.request(LIST_ENDPOINT_MESSAGES, body, context))


def _endpoint_id(request: web.Request) -> str:
    return id_in_path(request, ENDPOINT_ID, "endpoint")
