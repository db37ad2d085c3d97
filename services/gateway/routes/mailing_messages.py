"""The routes of the messages of a mailing: a list in pages, and all of them as CSV."""

from typing import Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import MAILING_ID
from services.gateway.parsing import QUERY
from services.gateway.responses import json_response
from services.gateway.routes import mailings
from services.gateway.routes.declaration import (
    Dependencies,
    Route,
    failures,
    ok,
    pagination,
    path_id,
    problem,
    status_filter,
)
from services.gateway.routes.resources import id_in_path
from shared.amqp.rpc import RequestContext
from shared.contracts.mailing_requests import LIST_MAILING_MESSAGES, MailingMessages
from shared.contracts.posting_requests import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, MessageState
from shared.http.mailing_export import COLUMNS, CSV, export_messages
from shared.http.openapi import Parameter, Response, TextBody

_EXAMPLE: Final = (
    f"{','.join(COLUMNS)}\r\n"
    f"{examples.ID},{examples.ID},{examples.ID},2026-11-20T12:00:01Z,2026-11-20T12:00:02Z,sent,\r\n"
)
_ID: Final = path_id("mailing", examples.ID)
_STATUS: Final = status_filter([state.value for state in MessageState])
_CLIENT: Final = Parameter(
    "client_id",
    "query",
    "Only the message to this client.",
    {"type": "string", "format": "uuid"},
    example=examples.USER,
)
_PAGE: Final = pagination(max_size=MAX_PAGE_SIZE, default_size=DEFAULT_PAGE_SIZE)
_NOT_FOUND: Final = {404: problem("The caller has no mailing with this id.")}
_FAILURES: Final = failures(
    "the broker, the database or mailings is unreachable", "Mailings did not respond in time"
)
_MESSAGE: Final = {
    "id": "0b0c3f0e-5d0b-5a50-9f5c-3b1c3a7b6f10",
    "mailing_id": examples.ID,
    "client_id": examples.USER,
    "created_at": "2026-11-20T12:00:01Z",
    "sent_at": "2026-11-20T12:00:02Z",
    "status": "sent",
    "reason": None,
}


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="GET",
            path="/v1/mailings/{id}/messages",
            operation_id="list_mailing_messages",
            handler=list_mailing_messages,
            tag=mailings.TAG,
            summary="List the messages of a mailing",
            description="Includes clients who got no message, with the reason.",
            parameters=(_ID, _STATUS, _CLIENT, *_PAGE),
            responses={
                200: ok(
                    "A page of messages, in an order that does not change.",
                    MailingMessages,
                    {"items": [_MESSAGE], "next_cursor": None},
                ),
                **_NOT_FOUND,
                **_FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/mailings/{id}/messages.csv",
            operation_id="export_mailing_messages",
            handler=export_mailing_messages,
            tag=mailings.TAG,
            summary="Export the messages of a mailing",
            description="Streams all messages as CSV, with a header line. If a page cannot be read,"
            " the connection is closed before the end of the response.",
            parameters=(_ID, _STATUS),
            responses={
                200: Response("All messages.", TextBody({CSV: _EXAMPLE})),
                **_NOT_FOUND,
                **_FAILURES,
            },
        ),
    )


async def list_mailing_messages(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of the messages of a mailing."""
    body = to_json(request[QUERY] | {"id": id_in_path(request, MAILING_ID, "mailing")})
    return json_response(await deps.services.request(LIST_MAILING_MESSAGES, body, context))


async def export_mailing_messages(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.StreamResponse:
    """Stream the messages of a mailing as CSV."""
    mailing_id = id_in_path(request, MAILING_ID, "mailing")
    query = request[QUERY]
    return await export_messages(request, deps.services, context, mailing_id, query)
