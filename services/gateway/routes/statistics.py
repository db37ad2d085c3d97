"""The routes of the statistics of mailings: each sends a request to mailings."""

from typing import Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import MAILING_ID
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    Dependencies,
    Route,
    failures,
    ok,
    path_id,
    problem,
)
from services.gateway.routes.resources import id_in_path
from shared.amqp.rpc import RequestContext
from shared.contracts.mailing_statistics import (
    GET_MAILING_STATISTICS,
    GET_STATISTICS,
    MailingStatistics,
    Statistics,
)

TAG: Final = "statistics"

_FAILURES: Final = failures(
    "the broker, the database or mailings is unreachable", "Mailings did not respond in time"
)


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="GET",
            path="/v1/mailings/stats",
            operation_id="get_statistics",
            handler=get_statistics,
            tag=TAG,
            summary="Count the messages of all mailings",
            description="Counts your mailings, and their messages by status.",
            responses={
                200: ok("The counts.", Statistics, {"mailings": 3, **_COUNTS}),
                **_FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/mailings/{id}/stats",
            operation_id="get_mailing_statistics",
            handler=get_mailing_statistics,
            tag=TAG,
            summary="Count the messages of a mailing",
            description="Counts them by status, by the hour of their creation, by operator code"
            " and by reason. They stay counted after the retention of messages.",
            parameters=(path_id("mailing", examples.ID),),
            responses={
                200: ok("The counts.", MailingStatistics, _OF_MAILING),
                404: problem("The client has no mailing with this id."),
                **_FAILURES,
            },
        ),
    )


async def get_statistics(
    _: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return the counts of all mailings."""
    return json_response(await deps.services.request(GET_STATISTICS, b"{}", context))


async def get_mailing_statistics(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return the counts of a mailing."""
    body = to_json({"id": id_in_path(request, MAILING_ID, "mailing")})
    return json_response(await deps.services.request(GET_MAILING_STATISTICS, body, context))


_BY_STATUS: Final = {
    "created": 120,
    "sent": 1500,
    "failed": 3,
    "expired": 0,
    "skipped": 97,
    "cancelled": 0,
}
_COUNTS: Final = {"total": 1720, "by_status": _BY_STATUS}
_OF_MAILING: Final = {
    "mailing_id": examples.ID,
    **_COUNTS,
    "by_hour": [{"hour": "2026-11-20T12:00:00Z", **_COUNTS}],
    "by_operator_code": [{"operator_code": "916", **_COUNTS}],
    "by_reason": {"refused": 3, "invalid_address": 97},
}
