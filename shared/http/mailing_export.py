"""Streams the messages of a mailing as CSV, for the gateway and the console.

It holds one page in memory, and requests the next one when the client has read the one before.
"""

import csv
import io
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import hdrs, web
from pydantic_core import to_json

from shared.amqp.rpc import RequestContext
from shared.contracts.mailing_requests import LIST_MAILING_MESSAGES, MailingMessage
from shared.contracts.posting_requests import MAX_PAGE_SIZE
from shared.http.problem import ProblemError
from shared.http.service_client import ServiceClient

logger = logging.getLogger(__name__)

CSV: Final = "text/csv"
COLUMNS: Final = tuple(MailingMessage.model_fields)


async def export_messages(
    request: web.Request,
    services: ServiceClient,
    context: RequestContext,
    mailing_id: str,
    query: Mapping[str, Any],
) -> web.StreamResponse:
    """Send all messages that match the query, with a header line.

    If a later page cannot be read, the connection is closed before the end of the response.

    Raises:
        ProblemError: the first page cannot be read.
    """

    async def page(cursor: str | None) -> dict[str, Any]:
        body = to_json({**query, "id": mailing_id, "limit": MAX_PAGE_SIZE, "cursor": cursor})
        found: dict[str, Any] = await services.request(LIST_MAILING_MESSAGES, body, context)
        return found

    found = await page(None)  # a failure is still a problem
    response = web.StreamResponse(
        headers={
            hdrs.CONTENT_TYPE: f"{CSV}; charset=utf-8",
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
