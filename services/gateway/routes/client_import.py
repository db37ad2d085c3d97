"""The route `/v1/clients/import`: streams the body to mailings."""

from typing import Final

from aiohttp import web

from services.gateway.parsing import body_chunks, check_media_type
from services.gateway.responses import json_response
from services.gateway.routes.declaration import Dependencies
from shared.amqp.rpc import RequestContext
from shared.http.client_import import import_clients as import_lines

CSV: Final = "text/csv"
JSON_LINES: Final = "application/x-ndjson"


async def import_clients(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Import the clients in the body; respond after all are committed."""
    is_csv = check_media_type(request, (CSV, JSON_LINES)) == CSV
    report = await import_lines(deps.services, context, body_chunks(request), is_csv=is_csv)
    return json_response(report)
