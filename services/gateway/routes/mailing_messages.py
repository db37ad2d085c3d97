"""The routes of the messages of a mailing: a list in pages, and all of them as CSV.

The export holds one page in memory. It requests a page when the client has read the one before.
"""

import csv
import io
import logging
from collections.abc import Iterable
from typing import Any, Final

from aiohttp import hdrs, web
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
from shared.contracts.mailing_requests import (
    LIST_MAILING_MESSAGES,
    MailingMessage,
    MailingMessages,
)
from shared.contracts.posting_requests import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, MessageState
from shared.http.openapi import Parameter, Response, TextBody
from shared.http.problem import ProblemError

logger = logging.getLogger(__name__)

COLUMNS: Final = tuple(MailingMessage.model_fields)
_TYPE: Final = "text/csv"
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
                200: Response("All messages.", TextBody({_TYPE: _EXAMPLE})),
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
    query = request[QUERY] | {"id": mailing_id, "limit": MAX_PAGE_SIZE}

    async def page(cursor: str | None) -> dict[str, Any]:
        body = to_json(query | {"cursor": cursor})
        found: dict[str, Any] = await deps.services.request(LIST_MAILING_MESSAGES, body, context)
        return found

    found = await page(None)  # a failure is still a problem
    response = web.StreamResponse(
        headers={
            hdrs.CONTENT_TYPE: f"{_TYPE}; charset=utf-8",
            hdrs.CONTENT_DISPOSITION: f'attachment; filename="messages-{mailing_id}.csv"',
            hdrs.CACHE_CONTROL: "no-store",
        }
    )
    await response.prepare(request)
    if request.method == hdrs.METH_HEAD:
        return response
    await response.write(_lines([COLUMNS]))
    while True:
        await response.write(_lines([item[name] for name in COLUMNS] for item in found["items"]))
        if found["next_cursor"] is None:
            break
        try:
            found = await page(found["next_cursor"])
        except ProblemError as error:
            logger.warning(
                "export interrupted", extra={"mailing_id": mailing_id, "detail": str(error)}
            )
            assert request.transport is not None  # noqa: S101 - only None after the response
            request.transport.abort()  # the client sees that the response is not complete
            break
    return response


def _lines(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
