"""Every operation of the HTTP interface, declared once: its path, its forms, its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pydantic import BaseModel

from services.gateway import examples
from services.gateway.forms import Batch, Move
from services.gateway.reading import IDEMPOTENCY_KEY
from shared.contracts.schedule_requests import (
    DEFAULT_PAGE,
    LONGEST_PAGE,
    CallbackPage,
    CallbackStatus,
    Cancelled,
    CancelledGroup,
    Created,
    CreatedBatch,
    Rescheduled,
    Retried,
    RetryCallbacks,
)
from shared.contracts.schedules import ScheduleCallback, Status
from shared.http.openapi import Answer, Body, Description, Operation, Parameter
from shared.http.problem import PROBLEM_JSON, Problem
from shared.version import VERSION

CALLBACKS: Final = "callbacks"
GROUPS: Final = "groups"

ABOUT: Final = Description(
    title="Ringback",
    version=VERSION,
    text="Ringback calls you back: it notifies your service at a set moment, at least once, never"
    " early, under one id over all retries.\n\n"
    "**Who calls.** A service ticket in `X-Service-Ticket` (or as bearer token) says which client"
    " calls; each client sees its own callbacks only. Without a ticket you are the anonymous"
    " client, as far as that is allowed here.\n\n"
    "**Errors** are `application/problem+json` (RFC 9457); a 422 names every wrong field. After"
    " 503 nothing was done. After 504 that is unknown: repeat with the same `Idempotency-Key`, or"
    " ask for the status.",
    tags={
        CALLBACKS: "Schedule callbacks, see how they are, move, cancel and retry them, by id.",
        GROUPS: "The same by your own keys: `group_key` joins callbacks, `event_key` names one.",
    },
    schemes={
        "ticket": {
            "type": "apiKey",
            "in": "header",
            "name": "X-Service-Ticket",
            "description": "A service ticket: a JWT whose `sub` is the client id and whose `aud`"
            " is `ringback`. `ringback ticket CLIENT_ID` makes one for development.",
        },
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    },
)


def _ok(text: str, model: type[BaseModel], example: Any = None) -> Answer:
    return Answer(text, Body(model, {} if example is None else {"Answer": example}))


def _problem(text: str, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(text, Body(Problem, media_type=PROBLEM_JSON), headers or {})


_ANY: Final = {
    401: _problem(
        "The ticket is not valid, or one is needed.",
        {"WWW-Authenticate": "How to say who calls."},
    ),
    422: _problem("Something is wrong; `errors` names every field."),
    503: _problem(
        "Not now: broker, database or scheduler are away. Nothing was done.",
        {"Retry-After": "Seconds."},
    ),
    504: _problem("The scheduler did not answer in time: what was done is unknown."),
}
_BODY: Final = {
    400: _problem("The body is not JSON; the position is named."),
    413: _problem("The body is too large."),
    415: _problem("The body's media type is not `application/json`."),
}
_NOT_FOUND: Final = {404: _problem("The caller has no such callback.")}

_ID: Final = Parameter(
    "id",
    "path",
    "The callback's id.",
    {"type": "string", "format": "uuid"},
    example=examples.ID,
)
_GROUP_KEY: Final = Parameter("group_key", "path", "The group's key.", example="user-7")
_EVENT_KEY: Final = Parameter("event_key", "path", "The event's key.", example="reminder-1")
_KEYS: Final = (_GROUP_KEY, _EVENT_KEY)
_PAGE: Final = (
    Parameter(
        "status",
        "query",
        "Only those in this state.",
        {"type": "string", "enum": [status.value for status in Status]},
    ),
    Parameter("cursor", "query", "`next_cursor` of the page before."),
    Parameter(
        "limit",
        "query",
        "How many at most.",
        {"type": "integer", "minimum": 1, "maximum": LONGEST_PAGE, "default": DEFAULT_PAGE},
    ),
)

_MOVE: Final = Body(Move, {"In a minute": {"delay": 60}, "At a moment": {"run_at": examples.LATER}})
_MOVED: Final = _ok(
    "What became of the wish: `result` says whether it was moved, or why not.",
    Rescheduled,
    {"id": examples.ID, "result": "rescheduled", "run_at": examples.LATER},
)
_CANCELLED: Final = _ok(
    "What became of the wish: `cancelled`; `in_flight`: on its way to the receiver, no more tries"
    " follow; `already_notified` or `already_failed`: too late.",
    Cancelled,
    {"id": examples.ID, "result": "cancelled"},
)
_STATUS: Final = _ok("Its status.", CallbackStatus, examples.STATUS)
_LIST: Final = _ok(
    "A page, newest first.", CallbackPage, {"items": [examples.STATUS], "next_cursor": None}
)


def operations(example_url: str) -> Sequence[Operation]:
    """All of them; examples call `example_url`."""
    create = Operation(
        id="create_callback",
        method="post",
        path="/v1/callbacks",
        tag=CALLBACKS,
        summary="Schedule a callback",
        description="Answered once it is committed: from then on it fires at least once, at"
        " `run_at` (or after `delay` seconds; with neither, now), never earlier.",
        parameters=(
            Parameter(
                IDEMPOTENCY_KEY,
                "header",
                "A repeat with the same key and body answers the same and schedules nothing.",
                {"type": "string", "minLength": 1, "maxLength": 255},
            ),
        ),
        body=Body(ScheduleCallback, examples.callbacks(example_url)),
        answers={
            201: Answer(
                "Scheduled.",
                Body(Created, {"Answer": examples.CREATED}),
                {"Location": "Where its status is."},
            ),
            409: _problem("The keys are in use, or the Idempotency-Key was used for another body."),
            403: _problem("The AMQP exchange is not one that notifications may go to."),
            **_BODY,
            **_ANY,
        },
    )
    return (
        create,
        Operation(
            id="list_callbacks",
            method="get",
            path="/v1/callbacks",
            tag=CALLBACKS,
            summary="List callbacks",
            parameters=(
                Parameter("group_key", "query", "Only those of this group."),
                Parameter("event_key", "query", "Only those with this event key."),
                *_PAGE,
            ),
            answers={200: _LIST, **_ANY},
        ),
        Operation(
            id="get_callback",
            method="get",
            path="/v1/callbacks/{id}",
            tag=CALLBACKS,
            summary="See how a callback is",
            parameters=(_ID,),
            answers={200: _STATUS, **_NOT_FOUND, **_ANY},
        ),
        Operation(
            id="reschedule_callback",
            method="patch",
            path="/v1/callbacks/{id}",
            tag=CALLBACKS,
            summary="Move a callback",
            description="In every phase, also between retries.",
            parameters=(_ID,),
            body=_MOVE,
            answers={200: _MOVED, **_NOT_FOUND, **_BODY, **_ANY},
        ),
        Operation(
            id="cancel_callback",
            method="delete",
            path="/v1/callbacks/{id}",
            tag=CALLBACKS,
            summary="Cancel a callback",
            description="In every phase, also between retries.",
            parameters=(_ID,),
            answers={200: _CANCELLED, **_NOT_FOUND, **_ANY},
        ),
        Operation(
            id="create_callbacks",
            method="post",
            path="/v1/callbacks/batch",
            tag=CALLBACKS,
            summary="Schedule up to 1,000 callbacks",
            description="Each is accepted or refused by itself, and answered at its place. A bare"
            " list is taken, too.",
            body=Body(Batch, {"Two": examples.batch(example_url)}),
            answers={
                200: _ok("An answer for each, in order.", CreatedBatch, examples.CREATED_BATCH),
                **_BODY,
                **_ANY,
            },
        ),
        Operation(
            id="retry_callbacks",
            method="post",
            path="/v1/callbacks/retry",
            tag=CALLBACKS,
            summary="Start failed callbacks again",
            description="One by `id`, those of a group, those that failed in a while, or all.",
            body=Body(
                RetryCallbacks,
                {
                    "Which would it be": {"group_key": "user-7", "dry_run": True},
                    "A group": {"group_key": "user-7"},
                },
            ),
            answers={
                200: _ok("Those that were started.", Retried, {"count": 1, "ids": [examples.ID]}),
                **_BODY,
                **_NOT_FOUND,
                **_ANY,
            },
        ),
        replace(
            create,
            id="add_callback",
            path="/v1/add",
            summary="Schedule a callback (short path)",
            description="The same as `POST /v1/callbacks`.",
        ),
        Operation(
            id="list_group",
            method="get",
            path="/v1/groups/{group_key}/callbacks",
            tag=GROUPS,
            summary="List the callbacks of a group",
            parameters=(_GROUP_KEY, *_PAGE),
            answers={200: _LIST, **_ANY},
        ),
        Operation(
            id="cancel_group",
            method="delete",
            path="/v1/groups/{group_key}/callbacks",
            tag=GROUPS,
            summary="Cancel a whole group",
            parameters=(_GROUP_KEY,),
            answers={
                200: _ok(
                    "What became of each; all are counted, the first thousand are named.",
                    CancelledGroup,
                    {
                        "items": [{"id": examples.ID, "result": "cancelled"}],
                        "counts": {"cancelled": 1},
                    },
                ),
                **_ANY,
            },
        ),
        Operation(
            id="get_event",
            method="get",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            tag=GROUPS,
            summary="See how a callback is, by its keys",
            parameters=_KEYS,
            answers={200: _STATUS, **_NOT_FOUND, **_ANY},
        ),
        Operation(
            id="reschedule_event",
            method="patch",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            tag=GROUPS,
            summary="Move a callback, by its keys",
            parameters=_KEYS,
            body=_MOVE,
            answers={200: _MOVED, **_NOT_FOUND, **_BODY, **_ANY},
        ),
        Operation(
            id="cancel_event",
            method="delete",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            tag=GROUPS,
            summary="Cancel a callback, by its keys",
            parameters=_KEYS,
            answers={200: _CANCELLED, **_NOT_FOUND, **_ANY},
        ),
    )
