"""The routes that read the journal: attempts, timelines, targets and the audit log."""

from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.parsing import QUERY, parse_uuid
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    KEY_SCHEMA,
    Dependencies,
    Route,
    failures,
    ok,
    pagination,
    problem,
)
from services.gateway.routes.resources import listing
from shared.amqp.rpc import RequestContext
from shared.contracts.journal import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    ORIGIN_PATTERN,
    TEXT_PATTERN,
)
from shared.contracts.journal_figures import (
    DEFAULT_MINUTES,
    LIST_TARGETS,
    MAX_CURSOR,
    MAX_MINUTES,
    TargetPage,
)
from shared.contracts.journal_reads import (
    LIST_ATTEMPTS,
    LIST_AUDIT,
    READ_ATTEMPTS,
    READ_TIMELINE,
    STATUS_PATTERN,
    AttemptList,
    AuditPage,
    CallbackAttemptPage,
    Timeline,
)
from shared.contracts.requests import RpcOperation
from shared.contracts.schedule_requests import GET_CALLBACK
from shared.http.openapi import Parameter
from shared.http.problem import ProblemError

TAG: Final = "journal"

FAILURES: Final = failures(
    "the broker, the database or the journal is unreachable, or the search takes too long",
    "The journal did not respond in time",
)
OPERATORS: Final = {
    **FAILURES,
    403: problem("Only operators may do this. `RINGBACK_OPERATORS` lists their client ids."),
}
NOT_FOUND: Final = {404: problem("The client has no such callback.")}
REF: Final = Parameter(
    "id",
    "path",
    "The id of the callback, or the `webhook-id` of a request.",
    {"type": "string", "minLength": 1, "pattern": TEXT_PATTERN},
    example=examples.ID,
)
PAGE: Final = pagination(max_size=MAX_PAGE_SIZE, default_size=DEFAULT_PAGE_SIZE)
_CLIENT: Final = Parameter(
    "client_id", "query", "Only of this client. Others than yours: only for operators.", KEY_SCHEMA
)
_TEXT: Final = {"type": "string", "minLength": 1, "pattern": TEXT_PATTERN}
_TIME: Final = {"type": "string", "format": "date-time"}
_SPAN: Final = (
    Parameter("since", "query", "Not before this time (RFC 3339).", _TIME),
    Parameter("until", "query", "Before this time (RFC 3339).", _TIME),
)
_TARGET: Final = "https://example.com:443"
_AT: Final = "2026-11-20T12:00:01Z"
_ATTEMPT: Final = {
    "at": _AT,
    "attempt": 1,
    "target": _TARGET,
    "status_code": 503,
    "duration": 0.041,
    "outcome": "failed",
    "reason": "the receiver responded with status 503",
    "response": "Down for maintenance.",
}
_ENTRY: Final = {
    "seq": 4711,
    "at": _AT,
    "kind": "scheduled",
    "callback_id": None,
    "schedule_id": examples.ID,
    "client_id": "shop",
    "next_at": "2026-11-20T12:00:00Z",
}


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="GET",
            path="/v1/callbacks/{id}/attempts",
            operation_id="list_callback_attempts",
            handler=list_callback_attempts,
            tag=TAG,
            summary="List the attempts of a callback",
            description="They appear within a second or two of the attempt, and stay for the"
            " retention of the journal.",
            parameters=(REF, *PAGE),
            responses={
                200: ok(
                    "A page of attempts, oldest first.",
                    CallbackAttemptPage,
                    {"items": [_ATTEMPT], "next_cursor": None},
                ),
                **NOT_FOUND,
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/callbacks/{id}/timeline",
            operation_id="get_callback_timeline",
            handler=get_timeline,
            tag=TAG,
            summary="Read the story of a callback",
            description="Every step: scheduled, dispatched, each attempt, the wait in a tier or for"
            " a main retry, and how it ended. The last steps are shown; `next_cursor` leads to"
            " those before them.",
            parameters=(REF, PAGE[0]),
            responses={
                200: ok(
                    "The steps, oldest first.",
                    Timeline,
                    {
                        "id": examples.ID,
                        "items": [
                            {
                                "at": _AT,
                                "kind": "scheduled",
                                "text": "Scheduled.",
                                "until": "2026-11-20T12:00:00Z",
                                "entry": _ENTRY,
                            }
                        ],
                        "next_cursor": None,
                        "kept": True,
                        "gaps": [],
                    },
                ),
                **NOT_FOUND,
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/attempts",
            operation_id="list_attempts",
            handler=listing(LIST_ATTEMPTS),
            tag=TAG,
            summary="Search attempts",
            description="All given parameters must match. A page of a search for something rare may"
            " have fewer items than `limit`, or none; the last page has no `next_cursor`.",
            parameters=(
                Parameter(
                    "target",
                    "query",
                    "Scheme, host and port, such as `https://example.com:443`.",
                    {"type": "string", "pattern": ORIGIN_PATTERN},
                ),
                Parameter(
                    "status",
                    "query",
                    "A status code, or `delivered`, `failed` (everything else), `dead` or"
                    " `dispatch_failed`.",
                    {"type": "string", "pattern": STATUS_PATTERN},
                ),
                Parameter("reason", "query", "A part of the reason.", _TEXT),
                Parameter("trace_id", "query", "The trace of the attempt.", _TEXT),
                Parameter(
                    "group_key",
                    "query",
                    "Only the scheduled callbacks of this group: the latest 200.",
                    KEY_SCHEMA,
                ),
                Parameter(
                    "event_key",
                    "query",
                    "Only the scheduled callbacks with this key: the latest 200.",
                    KEY_SCHEMA,
                ),
                _CLIENT,
                *_SPAN,
                *PAGE,
            ),
            responses={
                200: ok(
                    "A page of attempts, newest first.",
                    AttemptList,
                    {
                        "items": [
                            {
                                **_ATTEMPT,
                                "callback_id": examples.ID,
                                "schedule_id": examples.ID,
                                "client_id": "shop",
                                "dispatch": 1,
                                "next_at": "2026-11-20T12:01:01Z",
                                "trace_id": None,
                            }
                        ],
                        "next_cursor": None,
                    },
                ),
                **OPERATORS,
            },
        ),
        Route(
            method="GET",
            path="/v1/targets",
            operation_id="list_targets",
            handler=listing(LIST_TARGETS),
            tag=TAG,
            summary="List targets with their health",
            description="Only for operators. Those with the most errors are first.",
            parameters=(
                Parameter(
                    "minutes",
                    "query",
                    "Length of the span until now.",
                    {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": MAX_MINUTES,
                        "default": DEFAULT_MINUTES,
                    },
                ),
                _CLIENT,
                Parameter(
                    "cursor",
                    "query",
                    "`next_cursor` of the previous response.",
                    {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": MAX_CURSOR,
                        "format": "cursor",
                    },
                ),
                PAGE[1],
            ),
            responses={
                200: ok(
                    "A page of targets.",
                    TargetPage,
                    {
                        "items": [
                            {
                                "target": _TARGET,
                                "delivered": 970,
                                "failed": 30,
                                "p50": 0.04,
                                "p99": 1.2,
                                "paused": False,
                                "breaker_open": False,
                                "lane_full": False,
                            }
                        ],
                        "next_cursor": None,
                    },
                ),
                **OPERATORS,
            },
        ),
        Route(
            method="GET",
            path="/v1/audit",
            operation_id="list_audit",
            handler=listing(LIST_AUDIT),
            tag=TAG,
            summary="List actions of people and clients",
            description="Only for operators.",
            parameters=(
                Parameter("actor", "query", "Only of this person or client.", _TEXT),
                Parameter("action", "query", "Only this action, such as `redrive`.", _TEXT),
                _CLIENT,
                *_SPAN,
                *PAGE,
            ),
            responses={
                200: ok(
                    "A page of actions, newest first.",
                    AuditPage,
                    {
                        "items": [
                            {
                                "at": _AT,
                                "actor": "Omar",
                                "client_id": None,
                                "action": "pause_target",
                                "object": _TARGET,
                                "detail": {},
                                "result": "done",
                            }
                        ],
                        "next_cursor": None,
                    },
                ),
                **OPERATORS,
            },
        ),
    )


async def list_callback_attempts(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of the attempts of a callback."""
    return await _of_callback(
        request, context, deps, READ_ATTEMPTS, {"items": [], "next_cursor": None}
    )


async def get_timeline(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return the story of a callback."""
    without_steps: dict[str, Any] = {
        "id": request.match_info["id"],
        "items": [],
        "next_cursor": None,
        "kept": False,
        "gaps": [],
    }
    return await _of_callback(request, context, deps, READ_TIMELINE, without_steps)


async def _of_callback(
    request: web.Request,
    context: RequestContext,
    deps: Dependencies,
    operation: RpcOperation[Any],
    empty: Any,
) -> web.Response:
    """Return what the journal has about a callback.

    A callback that the journal does not have yet, or no longer, exists if the scheduler has it.
    """
    id_ = request.match_info["id"]
    try:
        body = to_json(request[QUERY] | {"id": id_})
        return json_response(await deps.services.request(operation, body, context))
    except ProblemError as error:
        scheduled = parse_uuid(id_)
        if error.status != HTTPStatus.NOT_FOUND or scheduled is None:
            raise
    await deps.services.request(GET_CALLBACK, to_json({"id": scheduled}), context)
    return json_response(empty)
