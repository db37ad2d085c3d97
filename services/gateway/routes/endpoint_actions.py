"""The routes that act on an endpoint: pause, resume, rotate its secret, test and replay."""

from http import HTTPStatus
from typing import Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import MESSAGE_ID
from services.gateway.parsing import QUERY, idempotency_key, if_match, json_body
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    IF_MATCH,
    Dependencies,
    Handler,
    Route,
    idempotency_header,
    ok,
    problem,
)
from services.gateway.routes.endpoints import (
    FAILURES,
    FOUND,
    ID,
    NOT_FOUND,
    PAGE,
    PRECONDITION_FAILED,
    SECRET,
    TAG,
    endpoint_id,
)
from services.gateway.routes.resources import etag
from shared.amqp.rpc import RequestContext
from shared.contracts.endpoint_requests import (
    LIST_REPLAYS,
    PAUSE_ENDPOINT,
    REPLAY_ENDPOINT,
    RESUME_ENDPOINT,
    ROTATE_SECRET,
    TEST_ENDPOINT,
    ControlEndpoint,
    EndpointTested,
    ReplayPage,
    ReplayStarted,
    SecretRotated,
)
from shared.contracts.endpoints import Replay
from shared.contracts.requests import RpcOperation
from shared.http.openapi import Body

_DISABLED: Final = {409: problem("The endpoint is disabled.")}
_REPLAY: Final = {
    "id": examples.ID,
    "since": "2026-11-20T12:00:00Z",
    "until": "2026-11-21T12:00:00Z",
    "replayed": 120,
    "created_at": "2026-11-21T12:00:00Z",
    "finished_at": None,
}


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        *(
            Route(
                method="POST",
                path=f"/v1/endpoints/{{id}}/{name}",
                operation_id=f"{name}_endpoint",
                handler=_control(operation),
                tag=TAG,
                summary=summary,
                description=description,
                parameters=(ID, IF_MATCH),
                responses={200: FOUND, **NOT_FOUND, **PRECONDITION_FAILED, **FAILURES},
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
                ID,
                IF_MATCH,
                idempotency_header("A repeat with the same key returns the same secret."),
            ),
            responses={
                200: ok(
                    "The new secret, which is returned only here.",
                    SecretRotated,
                    {"secret": SECRET, "old_secret_until": "2026-11-21T12:00:00Z"},
                ),
                **NOT_FOUND,
                **PRECONDITION_FAILED,
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
            parameters=(ID,),
            responses={
                202: ok(
                    "The message is stored.", EndpointTested, {"message_id": "msg_0b0c3f0e5d0b"}
                ),
                **NOT_FOUND,
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
            parameters=(ID,),
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
            parameters=(ID, *PAGE),
            responses={
                200: ok(
                    "A page of replays, newest first.",
                    ReplayPage,
                    {"items": [_REPLAY], "next_cursor": None},
                ),
                **NOT_FOUND,
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


def _control(operation: RpcOperation[ControlEndpoint]) -> Handler:
    async def control(
        request: web.Request, context: RequestContext, deps: Dependencies
    ) -> web.Response:
        body = to_json({"id": endpoint_id(request)} | if_match(request))
        endpoint = await deps.services.request(operation, body, context)
        return json_response(endpoint, headers=etag(endpoint))

    return control


async def rotate_secret(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Replace the secret of an endpoint, and return the new one."""
    fields = {"id": endpoint_id(request), "idempotency_key": idempotency_key(request)}
    body = to_json(fields | if_match(request))
    return json_response(await deps.services.request(ROTATE_SECRET, body, context))


async def test_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send a test message; respond after it is committed."""
    body = to_json({"id": endpoint_id(request)})
    tested = await deps.services.request(TEST_ENDPOINT, body, context)
    request[MESSAGE_ID] = tested["message_id"]
    return json_response(tested, HTTPStatus.ACCEPTED)


async def replay_endpoint(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send messages again; respond after the replay is committed."""
    id_ = to_json(endpoint_id(request))
    replay, _ = await json_body(request, deps.settings.max_body_bytes)
    body = b'{"id":%b,"replay":%b}' % (id_, replay)
    started = await deps.services.request(REPLAY_ENDPOINT, body, context)
    return json_response(started, HTTPStatus.ACCEPTED)


async def list_replays(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of the replays of an endpoint."""
    body = to_json(request[QUERY] | {"id": endpoint_id(request)})
    return json_response(await deps.services.request(LIST_REPLAYS, body, context))
