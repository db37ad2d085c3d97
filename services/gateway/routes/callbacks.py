"""The routes `/v1/callbacks`: each sends a request to the scheduler.

Bodies are passed on unchanged; only the scheduler validates their fields.
"""

from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from aiohttp import hdrs, web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import SCHEDULE_ID
from services.gateway.parsing import (
    QUERY,
    entity_tags,
    idempotency_key,
    if_match,
    invalid,
    json_body,
    parse_uuid,
)
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    ETAG_HEADER,
    IF_MATCH,
    IF_NONE_MATCH,
    KEY_SCHEMA,
    Dependencies,
    Route,
    failures,
    idempotency_header,
    ok,
    pagination,
    path_id,
    problem,
    status_filter,
)
from services.gateway.routes.resources import found
from services.gateway.schemas import CallbackChange
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import FieldError
from shared.contracts.schedule_requests import (
    CANCEL_CALLBACKS,
    CREATE_CALLBACK,
    DEFAULT_PAGE_SIZE,
    GET_CALLBACK,
    LIST_CALLBACKS,
    MAX_PAGE_SIZE,
    PUT_CALLBACK,
    RESCHEDULE_CALLBACK,
    RUN_CALLBACK,
    CallbackCreated,
    CallbackPage,
    CallbackStatus,
    CancelResponse,
    RescheduleResponse,
    RunResponse,
)
from shared.contracts.schedules import ScheduleCallback, Status
from shared.http.openapi import Body, Parameter, Response, link
from shared.http.service_client import not_found

TAG: Final = "callbacks"

_LATER: Final = "2030-01-02T12:00:00Z"
CREATED: Final = {"id": examples.ID, "status": "scheduled", "run_at": examples.RUN_AT}
_ETAG: Final = '"9f86d081884c7d659a2feaa0"'
# The path names the callback, and the header If-Match its state.
_NOT_IN_BODY: Final = ("id", "group_key", "event_key", "if_match")
_STATUS: Final = {
    "id": examples.ID,
    "status": "scheduled",
    "run_at": examples.RUN_AT,
    "next_at": examples.RUN_AT,
    "attempts": 0,
    "last_error": None,
    "group_key": "user-7",
    "event_key": "reminder-1",
    "context": {"text": "Your trial ends tomorrow."},
    "occurrence": None,
    "repeat": None,
    "created_at": "2026-11-21T12:00:00Z",
    "finished_at": None,
    "etag": _ETAG,
}

FAILURES: Final = failures(
    "the broker, the database or the scheduler is unreachable",
    "The scheduler did not respond in time",
)
NOT_FOUND: Final = {404: problem("The client has no such callback.")}
PAGE: Final = (
    status_filter([status.value for status in Status]),
    *pagination(max_size=MAX_PAGE_SIZE, default_size=DEFAULT_PAGE_SIZE),
)
CHANGE: Final = Body(
    CallbackChange,
    {
        "In a minute": {"delay": 60},
        "At a given time": {"run_at": _LATER},
        "Another URL, header and context": {
            "url": "https://example.com/other",
            "notify_scheme": {"headers": {"X-Tenant": "7"}},
            "context": {"text": "Your trial ends today."},
        },
    },
)
RESCHEDULED: Final = ok(
    "`result` is the outcome: rescheduled, changed (without a new time), or the reason why not.",
    RescheduleResponse,
    {"id": examples.ID, "result": "rescheduled", "run_at": _LATER},
)
CANCELLED: Final = ok(
    "`result` is the outcome. `in_flight`: the callback is being delivered. The quick retries of"
    " this dispatch may still follow, but no main retry. `already_notified`, `already_failed`: it"
    " had ended before.",
    CancelResponse,
    {"id": examples.ID, "result": "cancelled"},
)
STATUS: Final = replace(ok("The status.", CallbackStatus, _STATUS), headers=ETAG_HEADER)
NOT_MODIFIED: Final = {304: Response("The callback still has this `ETag`.", headers=ETAG_HEADER)}
IF_NONE_MATCH_ANY: Final = Parameter(
    "If-None-Match",
    "header",
    "`*`: only create the callback. If it exists, the status is 412.",
    {"type": "string", "enum": ["*"]},
)
PRECONDITION_FAILED: Final = {
    412: problem("The callback has changed since its `ETag` was read, or exists already.")
}
LIST: Final = ok(
    "A page of callbacks, newest first.", CallbackPage, {"items": [_STATUS], "next_cursor": None}
)

_ID: Final = path_id("callback", examples.ID)


def routes(example_url: str) -> tuple[Route, ...]:
    """Return the routes; the callbacks in the examples call `example_url`."""
    create = Route(
        method="POST",
        path="/v1/callbacks",
        operation_id="create_callback",
        handler=create_callback,
        tag=TAG,
        summary="Schedule a callback",
        description="The response is sent after the callback is committed. From then on it is"
        " delivered at least once, at `run_at` or after `delay` seconds, and never earlier."
        " Without either, it is due now.",
        parameters=(
            idempotency_header(
                "A repeat with the same key and body returns the same response and schedules"
                " nothing."
            ),
        ),
        body=Body(ScheduleCallback, examples.callbacks(example_url)),
        responses={
            201: Response(
                "Scheduled.",
                Body(CallbackCreated, {"Response": CREATED}),
                {"Location": "The URL of its status."},
                {
                    name: link(name, text, id="$response.body#/id")
                    for name, text in (
                        ("get_callback", "Its status."),
                        ("reschedule_callback", "Change its due time."),
                        ("cancel_callback", "Cancel it."),
                    )
                },
            ),
            409: problem(
                "The keys are in use, or the Idempotency-Key was used with a different body."
            ),
            **BODY_FAILURES,
            **FAILURES,
        },
    )
    return (
        create,
        Route(
            method="GET",
            path="/v1/callbacks",
            operation_id="list_callbacks",
            handler=list_callbacks,
            tag=TAG,
            summary="List callbacks",
            description="A page may have fewer items than `limit`, for example if their contexts"
            " are large. The last page has no `next_cursor`.",
            parameters=(
                Parameter("group_key", "query", "Only callbacks of this group.", KEY_SCHEMA),
                Parameter(
                    "event_key",
                    "query",
                    "Only callbacks with this event key. Without `group_key`: in any group.",
                    KEY_SCHEMA,
                ),
                *PAGE,
            ),
            responses={200: LIST, **FAILURES},
        ),
        Route(
            method="GET",
            path="/v1/callbacks/{id}",
            operation_id="get_callback",
            handler=get_callback,
            tag=TAG,
            summary="Get the status of a callback",
            description="Available until the callback's retention ends.",
            parameters=(_ID, IF_NONE_MATCH),
            responses={200: STATUS, **NOT_MODIFIED, **NOT_FOUND, **FAILURES},
        ),
        Route(
            method="PATCH",
            path="/v1/callbacks/{id}",
            operation_id="reschedule_callback",
            handler=reschedule_callback,
            tag=TAG,
            summary="Reschedule or change a callback",
            description="Changes the due time, the URL, the headers or the context of a callback"
            " that waits, also between retries. A new time counts the attempts from zero. With"
            " another change, the callback is due in 5 s at the earliest.",
            parameters=(_ID, IF_MATCH),
            body=CHANGE,
            responses={
                200: RESCHEDULED,
                **NOT_FOUND,
                **PRECONDITION_FAILED,
                **BODY_FAILURES,
                **FAILURES,
            },
        ),
        Route(
            method="DELETE",
            path="/v1/callbacks/{id}",
            operation_id="cancel_callback",
            handler=cancel_callback,
            tag=TAG,
            summary="Cancel a callback",
            description="Possible until the callback has ended, also between retries.",
            parameters=(_ID, IF_MATCH),
            responses={200: CANCELLED, **NOT_FOUND, **PRECONDITION_FAILED, **FAILURES},
        ),
        Route(
            method="POST",
            path="/v1/callbacks/{id}/run",
            operation_id="run_callback",
            handler=run_callback,
            tag=TAG,
            summary="Send a waiting callback now",
            description="Sends it at once, instead of at its due time or its next main retry. The"
            " later occurrences of a recurring callback keep their times.",
            parameters=(_ID, IF_MATCH),
            responses={
                200: ok(
                    "`result` is the outcome: started, or the reason why not.",
                    RunResponse,
                    {"id": examples.ID, "result": "started"},
                ),
                **NOT_FOUND,
                **PRECONDITION_FAILED,
                **FAILURES,
            },
        ),
        replace(
            create,
            path="/v1/add",
            operation_id="add_callback",
            summary="Schedule a callback (short path)",
            description="The same as `POST /v1/callbacks`.",
        ),
    )


async def create_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Schedule a callback; respond after it is committed."""
    key = idempotency_key(request)
    callback, _ = await json_body(request, deps.settings.max_body_bytes)
    body = b'{"callback":%b,"idempotency_key":%b}' % (callback, to_json(key))
    created = await deps.services.request(CREATE_CALLBACK, body, context)
    request[SCHEDULE_ID] = created["id"]
    location = f"/v1/callbacks/{quote(created['id'])}"
    return json_response(created, HTTPStatus.CREATED, {"Location": location})


async def list_callbacks(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of the client's callbacks; the path may name a group."""
    body = to_json(request[QUERY] | _selector(request))
    return json_response(await deps.services.request(LIST_CALLBACKS, body, context))


async def get_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return the status of the callback that the path names."""
    return await found(request, context, deps, GET_CALLBACK, _selector(request))


async def cancel_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Cancel the callback or the group that the path names."""
    body = to_json(request[QUERY] | _selector(request) | if_match(request))
    return _result(await deps.services.request(CANCEL_CALLBACKS, body, context))


async def run_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send a waiting callback now."""
    body = to_json(_selector(request) | if_match(request))
    return _result(await deps.services.request(RUN_CALLBACK, body, context))


async def put_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Create the callback with the keys in the path, or replace it while it waits."""
    keys = _selector(request)
    content = await _object(request, deps)
    if differing := [name for name in keys if content.get(name, keys[name]) != keys[name]]:
        message = "differs from the key in the path"
        raise invalid([FieldError(field=name, message=message) for name in differing])
    if (tags := entity_tags(request, hdrs.IF_NONE_MATCH)) not in (None, ["*"]):
        message = "must be *; to replace a callback in a known state, send If-Match"
        raise invalid([FieldError(field=hdrs.IF_NONE_MATCH, message=message)])
    only = {} if tags is None else {"create_only": True}
    body = to_json({"callback": content | keys} | if_match(request) | only)
    put = dict(await deps.services.request(PUT_CALLBACK, body, context))
    request[SCHEDULE_ID] = put["id"]
    if put.pop("created"):
        location = f"/v1/callbacks/{quote(put['id'])}"
        return json_response(put, HTTPStatus.CREATED, {"Location": location})
    return json_response(put)


async def reschedule_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Reschedule the callback that the path names."""
    selector = _selector(request)
    content = await _object(request, deps)
    if repeated := [name for name in _NOT_IN_BODY if name in content]:
        message = "is not allowed in the body; the path names the callback"
        raise invalid([FieldError(field=name, message=message) for name in repeated])
    body = to_json(content | selector | if_match(request))
    return _result(await deps.services.request(RESCHEDULE_CALLBACK, body, context))


async def _object(request: web.Request, deps: Dependencies) -> dict[str, Any]:
    """Return the body, which must be a JSON object."""
    _, content = await json_body(request, deps.settings.max_body_bytes)
    if not isinstance(content, dict):
        raise invalid([FieldError(field="", message="Input should be an object")])
    return content


def _selector(request: web.Request) -> dict[str, str]:
    """Return the selector in the path: an id, a group, or the keys of a callback."""
    selector = dict(request.match_info)
    if "id" in selector:
        callback_id = parse_uuid(selector["id"])
        if callback_id is None:
            raise not_found("callback not found")
        request[SCHEDULE_ID] = selector["id"] = callback_id
    return selector


def _result(value: Mapping[str, Any]) -> web.Response:
    """Return the response for a value with a `result`; `not_found` is a 404, as everywhere."""
    if value.get("result") == "not_found":
        raise not_found("callback not found")
    return json_response(value)
