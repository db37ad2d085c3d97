"""The routes that send callbacks again, and pause targets: requests to the journal."""

from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.parsing import invalid, json_body
from services.gateway.responses import json_response
from services.gateway.routes import callbacks, journal
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    Dependencies,
    Route,
    ok,
    problem,
)
from services.gateway.routes.resources import passed_on
from services.gateway.schemas import ReplayChange
from shared.amqp.rpc import RequestContext
from shared.contracts.journal import JobStarted, Matching
from shared.contracts.journal_replays import (
    PAUSE_TARGET,
    REPLAY_CALLBACK,
    RESUME_TARGET,
    START_REPLAY,
    ControlTarget,
    Replayed,
    StartReplay,
    TargetControlled,
)
from shared.contracts.requests import FieldError
from shared.http.openapi import Body

_NOT_KEPT: Final = {
    409: problem(
        "`not_kept`: the journal has not kept the request. `conflict`: several clients have used"
        " the id, and an operator names none of them."
    )
}
_NOT_STARTED: Final = {
    409: problem(
        "`not_kept`: the journal keeps no requests. `conflict`: a job of yours is running."
    )
}
_OTHER_URL: Final = "https://staging.example.com/hooks"
_TARGET: Final = "https://customer.example.com:443"
_CONTROL: Final = Body(ControlTarget, {"A target": {"target": _TARGET}})


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="POST",
            path="/v1/callbacks/replay",
            operation_id="replay_callbacks",
            handler=replay_callbacks,
            tag=callbacks.TAG,
            summary="Send all matching callbacks again",
            description="Sends each callback whose last attempt matches, once, under its"
            " `webhook-id`. With `dry_run` it only counts them. Otherwise it starts a job; get its"
            " progress from `GET /v1/jobs/{id}`. Callbacks whose request was not kept count as"
            " failed.",
            body=Body(
                StartReplay,
                {
                    "Count what failed": {
                        "filter": {"since": "2026-11-20T12:00:00Z"},
                        "dry_run": True,
                    },
                    "Send again what failed at a target": {
                        "filter": {"target": _TARGET},
                        "rate": 50,
                    },
                },
            ),
            responses={
                200: ok("How many match, with `dry_run`.", Matching, {"matching": 7}),
                202: ok("The job that was started.", JobStarted, {"job": examples.ID}),
                **_NOT_STARTED,
                **BODY_FAILURES,
                **journal.FAILURES,
            },
        ),
        Route(
            method="POST",
            path="/v1/callbacks/{id}/replay",
            operation_id="replay_callback",
            handler=replay_callback,
            tag=callbacks.TAG,
            summary="Send a callback again",
            description="Sends the kept request again, under the same `webhook-id`, optionally to"
            " another URL. Its status does not change. An expiry is ignored.",
            parameters=(journal.REF,),
            body=Body(
                ReplayChange,
                {"The same URL": {}, "Another URL": {"url": _OTHER_URL}},
                required=False,
            ),
            responses={
                202: ok("It is sent again.", Replayed, {"id": examples.ID}),
                **journal.NOT_FOUND,
                **_NOT_KEPT,
                **BODY_FAILURES,
                **journal.OPERATORS,
            },
        ),
        Route(
            method="POST",
            path="/v1/targets/pause",
            operation_id="pause_target",
            handler=passed_on(PAUSE_TARGET),
            tag=journal.TAG,
            summary="Pause a target",
            description="Callbacks to it are deferred, without an attempt, until it is resumed."
            " Only for operators.",
            body=_CONTROL,
            responses={
                200: ok(
                    "The target is paused.", TargetControlled, {"target": _TARGET, "paused": True}
                ),
                409: problem("Too many targets are paused."),
                **BODY_FAILURES,
                **journal.OPERATORS,
            },
        ),
        Route(
            method="POST",
            path="/v1/targets/resume",
            operation_id="resume_target",
            handler=passed_on(RESUME_TARGET),
            tag=journal.TAG,
            summary="Resume a target",
            description="New callbacks are sent at once, deferred ones within five minutes. Only"
            " for operators.",
            body=_CONTROL,
            responses={
                200: ok(
                    "The target is not paused.",
                    TargetControlled,
                    {"target": _TARGET, "paused": False},
                ),
                **BODY_FAILURES,
                **journal.OPERATORS,
            },
        ),
    )


async def replay_callbacks(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Count the matching callbacks, or start a job that sends them again."""
    body, _ = await json_body(request, deps.settings.max_body_bytes)
    response = await deps.services.request(START_REPLAY, body, context)
    status = HTTPStatus.ACCEPTED if "job" in response else HTTPStatus.OK
    return json_response(response, status)


async def replay_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send the callback again that the path names. The body may be missing."""
    change: dict[str, Any] = {}
    if request.can_read_body:
        _, change = await json_body(request, deps.settings.max_body_bytes)
        if not isinstance(change, dict):
            raise invalid([FieldError(field="", message="Input should be an object")])
        if "id" in change:
            raise invalid([FieldError(field="id", message="is not allowed in the body")])
    body = to_json(change | {"id": request.match_info["id"]})
    response = await deps.services.request(REPLAY_CALLBACK, body, context)
    return json_response(response, HTTPStatus.ACCEPTED)
