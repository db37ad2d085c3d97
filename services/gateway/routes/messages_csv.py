"""The route `/v1/mailings/{id}/messages.csv`: streams all messages of a mailing.

Memory holds one page. A page is requested when the client has read the one before.
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
from services.gateway.parsing import QUERY, parse_uuid
from services.gateway.routes import mailings
from services.gateway.routes.declaration import (
    Dependencies,
    Route,
    failures,
    path_id,
    problem,
    status_filter,
)
from services.gateway.rpc import not_found
from shared.amqp.rpc import RequestContext
from shared.contracts.mailing_requests import LIST_MAILING_MESSAGES, MailingMessage
from shared.contracts.posting_requests import MAX_PAGE_SIZE, MessageState
from shared.http.openapi import Response, TextBody
from shared.http.problem import ProblemError

logger = logging.getLogger(__name__)

COLUMNS: Final = tuple(MailingMessage.model_fields)
_TYPE: Final = "text/csv"
_EXAMPLE: Final = (
    f"{','.join(COLUMNS)}\r\n"
    f"{examples.ID},{examples.ID},{examples.ID},2026-11-20T12:00:01Z,2026-11-20T12:00:02Z,sent,\r\n"
)


def routes() -> tuple[Route, ...]:
    """Return the route."""
    return (
        Route(
            method="GET",
            path="/v1/mailings/{id}/messages.csv",
            operation_id="export_mailing_messages",
            handler=export_mailing_messages,
            tag=mailings.TAG,
            summary="Export the messages of a mailing",
            description="Streams all messages as CSV, with a header line. If a page cannot be read,"
            " the connection is closed before the end of the response.",
            parameters=(
                path_id("mailing", examples.ID),
                status_filter([state.value for state in MessageState]),
            ),
            responses={
                200: Response("All messages.", TextBody({_TYPE: _EXAMPLE})),
                404: problem("The caller has no mailing with this id."),
                **failures(
                    "the broker, the database or mailings is unreachable",
                    "Mailings did not respond in time",
                ),
            },
        ),
    )


async def export_mailing_messages(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.StreamResponse:
    """Stream the messages of a mailing as CSV."""
    mailing_id = parse_uuid(request.match_info["id"])
    if mailing_id is None:
        raise not_found("the mailing does not exist")
    request[MAILING_ID] = mailing_id
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
