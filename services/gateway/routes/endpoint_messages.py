"""The routes `/v1/messages`: messages to the endpoints of a client."""

from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import MESSAGE_ID
from services.gateway.parsing import QUERY, idempotency_key, json_body
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    Dependencies,
    Route,
    idempotency_header,
    ok,
    problem,
)
from services.gateway.routes.endpoints import DELIVERY, FAILURES, PAGE, TAG
from shared.amqp.rpc import RequestContext
from shared.contracts.endpoint_requests import (
    GET_ENDPOINT_MESSAGE,
    LIST_MESSAGE_ATTEMPTS,
    SEND_ENDPOINT_MESSAGE,
    AttemptPage,
    EndpointMessageAccepted,
)
from shared.contracts.endpoints import MESSAGE_ID_PATTERN, EndpointMessage, NewEndpointMessage
from shared.http.openapi import Body, Parameter, Response, link

_NOT_FOUND: Final = {404: problem("The caller has no message with this id.")}
_ID: Final = Parameter(
    "id",
    "path",
    "The id of the message.",
    {"type": "string", "minLength": 1, "pattern": MESSAGE_ID_PATTERN},
    example="invoice-7-paid",
)
_PAYLOAD: Final = {"invoice": 7, "total": "12.50"}
_ATTEMPT: Final = {
    "endpoint_id": examples.ID,
    "attempt": 1,
    "at": "2026-11-20T12:00:01Z",
    "status_code": 200,
    "duration": 0.041,
    "error": None,
}


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="POST",
            path="/v1/messages",
            operation_id="send_endpoint_message",
            handler=send_message,
            tag=TAG,
            summary="Send a message to all endpoints that select it",
            description="The body of each request is the payload, and `webhook-id` is the id of"
            " the message, the same for all endpoints.",
            parameters=(
                idempotency_header("A repeat with the same key and body sends nothing again."),
            ),
            body=Body(
                NewEndpointMessage,
                {
                    "With an id": {
                        "id": "invoice-7-paid",
                        "event_type": "invoice.paid",
                        "payload": _PAYLOAD,
                    },
                    "Without": {"event_type": "invoice.paid", "payload": _PAYLOAD},
                },
            ),
            responses={
                202: Response(
                    "The message is stored, with a delivery for each endpoint.",
                    Body(
                        EndpointMessageAccepted,
                        {"Response": {"id": "invoice-7-paid", "endpoints": 3}},
                    ),
                    {"Location": "The URL of the message."},
                    {
                        name: link(name, text, id="$response.body#/id")
                        for name, text in (
                            ("get_endpoint_message", "The message."),
                            ("list_endpoint_message_attempts", "Its attempts."),
                        )
                    },
                ),
                409: problem(
                    "Another message, with another event type or payload, has this id or this"
                    " Idempotency-Key."
                ),
                **BODY_FAILURES,
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/messages/{id}",
            operation_id="get_endpoint_message",
            handler=get_message,
            tag=TAG,
            summary="Get a message",
            description="With its status at each endpoint. Messages of another caller do not exist"
            " for you.",
            parameters=(_ID,),
            responses={
                200: ok(
                    "The message.",
                    EndpointMessage,
                    {
                        "id": "invoice-7-paid",
                        "event_type": "invoice.paid",
                        "payload": _PAYLOAD,
                        "created_at": "2026-11-20T12:00:00Z",
                        "deliveries": [DELIVERY],
                    },
                ),
                **_NOT_FOUND,
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/messages/{id}/attempts",
            operation_id="list_endpoint_message_attempts",
            handler=list_message_attempts,
            tag=TAG,
            summary="List the attempts of a message",
            description="Attempts at all endpoints.",
            parameters=(_ID, *PAGE),
            responses={
                200: ok(
                    "A page of attempts, oldest first.",
                    AttemptPage,
                    {"items": [_ATTEMPT], "next_cursor": None},
                ),
                **_NOT_FOUND,
                **FAILURES,
            },
        ),
    )


async def send_message(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send a message; respond after it is committed."""
    key = idempotency_key(request)
    message, _ = await json_body(request, deps.settings.max_body_bytes)
    body = b'{"message":%b,"idempotency_key":%b}' % (message, to_json(key))
    accepted = await deps.services.request(SEND_ENDPOINT_MESSAGE, body, context)
    request[MESSAGE_ID] = accepted["id"]
    location = {"Location": f"/v1/messages/{quote(accepted['id'], safe='')}"}
    return json_response(accepted, HTTPStatus.ACCEPTED, location)


async def get_message(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a message with its deliveries."""
    body = to_json({"id": request.match_info["id"]})
    return json_response(await deps.services.request(GET_ENDPOINT_MESSAGE, body, context))


async def list_message_attempts(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of the attempts of a message."""
    body = to_json(request[QUERY] | {"id": request.match_info["id"]})
    return json_response(await deps.services.request(LIST_MESSAGE_ATTEMPTS, body, context))
