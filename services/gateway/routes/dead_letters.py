"""The routes of dead letters and jobs. The journal responds, and only to operators."""

from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.parsing import QUERY, json_body, parse_uuid
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    Dependencies,
    Handler,
    Route,
    failures,
    ok,
    pagination,
    path_id,
    problem,
)
from services.gateway.routes.resources import listing
from shared.amqp.rpc import RequestContext
from shared.contracts.callback import CLIENT_ID_PATTERN
from shared.contracts.journal import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    ORIGIN_PATTERN,
    TEXT_PATTERN,
    Job,
    JobKind,
    JobStarted,
    JobStatus,
    Matching,
)
from shared.contracts.journal_dead import (
    CANCEL_JOB,
    GROUP_DEAD,
    LIST_DEAD,
    LIST_JOBS,
    READ_JOB,
    READ_LETTER,
    START_DISCARD,
    START_REDRIVE,
    GroupList,
    JobPage,
    LetterDetails,
    LetterPage,
    MoveLetters,
)
from shared.contracts.requests import RpcOperation
from shared.http.openapi import Body, Parameter
from shared.http.service_client import not_found
from shared.topology import CALLBACKS, WORK_QUEUES

TAG: Final = "dead letters"

FAILURES: Final = failures(
    "the broker, the database or the journal is unreachable", "The journal did not respond in time"
)
_OPERATORS: Final = {
    **FAILURES,
    403: problem("Only operators may do this. `RINGBACK_OPERATORS` lists their client ids."),
}
_QUEUE: Final = Parameter(
    "queue",
    "path",
    "The work queue.",
    {"type": "string", "enum": [queue.name for queue in WORK_QUEUES]},
    example=CALLBACKS,
)
_NO_QUEUE: Final = {404: problem("There is no such work queue.")}
_GROUP_BY: Final = Parameter(
    "group_by",
    "query",
    "What the groups have in common. Default: `reason`.",
    {"type": "string", "enum": ["reason", "target"]},
)
_TEXT: Final = {"type": "string", "minLength": 1, "pattern": TEXT_PATTERN}
_CLIENT_ID: Final = {"type": "string", "pattern": CLIENT_ID_PATTERN}
_ORIGIN: Final = {"type": "string", "pattern": ORIGIN_PATTERN}
_TIME: Final = {"type": "string", "format": "date-time"}
_FILTER: Final = (
    Parameter("reason", "query", "The key of a group, or a part of the reason.", _TEXT),
    Parameter("target", "query", "Scheme, host and port of the URL.", _ORIGIN),
    Parameter("client_id", "query", "The client of the message.", _CLIENT_ID),
    Parameter("since", "query", "Dead-lettered at this time or later (RFC 3339).", _TIME),
    Parameter("until", "query", "Dead-lettered before this time (RFC 3339).", _TIME),
)
_PAGE: Final = pagination(max_size=MAX_PAGE_SIZE, default_size=DEFAULT_PAGE_SIZE)
_LETTER_ID: Final = "6f1d2c3b4a5968778695a4b3c2d1e0f9"
_KEY: Final = "gave up after # attempts: the receiver responded with 503"
_LETTER: Final = {
    "letter_id": _LETTER_ID,
    "logical_id": examples.ID,
    "client_id": "shop",
    "target": "https://example.com:443",
    "reason": "gave up after 5 attempts: the receiver responded with 503",
    "at": "2026-11-20T12:00:00Z",
}
_JOB: Final = {
    "id": examples.ID,
    "kind": "redrive",
    "status": "running",
    "queue": CALLBACKS,
    "filter": {"reason": _KEY},
    "rate": 100.0,
    "matching": 1200,
    "done": 400,
    "failed": 0,
    "actor": "operator",
    "client_id": None,
    "created_at": "2026-11-20T12:00:00Z",
    "finished_at": None,
}
_JOB_ID: Final = path_id("job", examples.ID)
_NO_JOB: Final = {404: problem("The job does not exist.")}
_NOT_YOURS: Final = {**FAILURES, 403: problem("The job is not one of the caller.")}


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="GET",
            path="/v1/dead/{queue}",
            operation_id="group_dead_letters",
            handler=group_dead_letters,
            tag=TAG,
            summary="Count the dead letters of a work queue in groups",
            description="Numbers, ids and quotations in a reason do not make another group. The key"
            " of a group is the `reason` of a filter that selects it.",
            parameters=(_QUEUE, _GROUP_BY, _PAGE[1]),
            responses={
                200: ok(
                    "The groups, the largest first.",
                    GroupList,
                    {"items": [{"key": _KEY, "count": 1200}], "next_cursor": None, "total": 1234},
                ),
                **_NO_QUEUE,
                **_OPERATORS,
            },
        ),
        Route(
            method="GET",
            path="/v1/dead/{queue}/letters",
            operation_id="list_dead_letters",
            handler=list_dead_letters,
            tag=TAG,
            summary="List the dead letters of a work queue",
            description="The latest first. All parameters must match.",
            parameters=(_QUEUE, *_FILTER, *_PAGE),
            responses={
                200: ok(
                    "A page of dead letters.", LetterPage, {"items": [_LETTER], "next_cursor": None}
                ),
                **_NO_QUEUE,
                **_OPERATORS,
            },
        ),
        Route(
            method="GET",
            path="/v1/dead/{queue}/letters/{letter_id}",
            operation_id="get_dead_letter",
            handler=get_dead_letter,
            tag=TAG,
            summary="Get a dead letter with its headers and body",
            description="Secrets are hidden. It is read in its queue, so in a queue with more than"
            " some ten thousand messages it may not be found in time (503).",
            parameters=(
                _QUEUE,
                Parameter(
                    "letter_id", "path", "`letter_id` of the list.", _TEXT, example=_LETTER_ID
                ),
            ),
            responses={
                200: ok(
                    "The dead letter.",
                    LetterDetails,
                    {
                        **_LETTER,
                        "attempts": 5,
                        "properties": {"type": "SendCallback"},
                        "headers": {},
                        "body": {"id": examples.ID, "hmac_secret": "******"},
                    },
                ),
                404: problem("There is no such work queue, or no such dead letter in it."),
                **_OPERATORS,
            },
        ),
        _moving("redrive", START_REDRIVE, "Move dead letters back to their work queue"),
        _moving("discard", START_DISCARD, "Delete dead letters"),
        Route(
            method="GET",
            path="/v1/jobs",
            operation_id="list_jobs",
            handler=listing(LIST_JOBS),
            tag=TAG,
            summary="List jobs",
            description="The latest first. Operators see all jobs, other clients their own.",
            parameters=(
                Parameter("kind", "query", "Only jobs of this kind.", _enum(JobKind)),
                Parameter("status", "query", "Only jobs with this status.", _enum(JobStatus)),
                *_PAGE,
            ),
            responses={
                200: ok("A page of jobs.", JobPage, {"items": [_JOB], "next_cursor": None}),
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/jobs/{id}",
            operation_id="get_job",
            handler=_on_job(READ_JOB),
            tag=TAG,
            summary="Get a job with its progress",
            description="`done` and `failed` count up to `matching`.",
            parameters=(_JOB_ID,),
            responses={200: ok("The job.", Job, _JOB), **_NO_JOB, **_NOT_YOURS},
        ),
        Route(
            method="DELETE",
            path="/v1/jobs/{id}",
            operation_id="cancel_job",
            handler=_on_job(CANCEL_JOB),
            tag=TAG,
            summary="Cancel a job",
            description="It stops within a second. What it has done stays done. A job that has"
            " ended stays as it is.",
            parameters=(_JOB_ID,),
            responses={
                200: ok("The job.", Job, {**_JOB, "status": "cancelled"}),
                **_NO_JOB,
                **_NOT_YOURS,
            },
        ),
    )


def _moving(name: str, operation: RpcOperation[Any], summary: str) -> Route:
    return Route(
        method="POST",
        path=f"/v1/dead/{{queue}}/{name}",
        operation_id=f"{name}_dead_letters",
        handler=_start(operation),
        tag=TAG,
        summary=summary,
        description="A job moves the letters that match now. Those that die again meanwhile are not"
        " moved again. A queue has one job at a time.",
        parameters=(_QUEUE,),
        body=Body(
            MoveLetters,
            {
                "Count only": {"filter": {"reason": _KEY}, "dry_run": True},
                "One group": {"filter": {"reason": _KEY}, "rate": 50},
            },
        ),
        responses={
            200: ok("With `dry_run`: how many match.", Matching, {"matching": 1200}),
            202: ok("The job was started.", JobStarted, {"job": examples.ID}),
            **_NO_QUEUE,
            409: problem("A job moves letters of this queue already."),
            **BODY_FAILURES,
            **_OPERATORS,
        },
    )


def _enum(values: type[JobKind | JobStatus]) -> dict[str, Any]:
    return {"type": "string", "enum": [value.value for value in values]}


async def group_dead_letters(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return the groups of dead letters."""
    query: dict[str, Any] = request[QUERY]
    body = to_json(query | {"queue": request.match_info["queue"]})
    return json_response(await deps.services.request(GROUP_DEAD, body, context))


async def list_dead_letters(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of dead letters."""
    given: dict[str, Any] = request[QUERY]
    query = dict(given)
    page = {name: query.pop(name) for name in ("cursor", "limit") if name in query}
    body = to_json({"queue": request.match_info["queue"], "filter": query, **page})
    return json_response(await deps.services.request(LIST_DEAD, body, context))


async def get_dead_letter(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return one dead letter."""
    names = {"queue": request.match_info["queue"], "id": request.match_info["letter_id"]}
    return json_response(await deps.services.request(READ_LETTER, to_json(names), context))


def _start(operation: RpcOperation[Any]) -> Handler:
    async def handle(
        request: web.Request, context: RequestContext, deps: Dependencies
    ) -> web.Response:
        """Start a job, or count the letters that match."""
        move, _ = await json_body(request, deps.settings.max_body_bytes)
        body = b'{"queue":%b,"move":%b}' % (to_json(request.match_info["queue"]), move)
        response = await deps.services.request(operation, body, context)
        started = "job" in response
        return json_response(response, HTTPStatus.ACCEPTED if started else HTTPStatus.OK)

    return handle


def _on_job(operation: RpcOperation[Any]) -> Handler:
    async def handle(
        request: web.Request, context: RequestContext, deps: Dependencies
    ) -> web.Response:
        """Request an operation on a job, and return the job."""
        id_ = parse_uuid(request.match_info["id"])
        if id_ is None:
            raise not_found("the job does not exist")
        body = to_json({"id": id_})
        return json_response(await deps.services.request(operation, body, context))

    return handle
