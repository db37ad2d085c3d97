"""The routes `/v1/groups`: callbacks by the client's own keys."""

from typing import Final

from services.gateway import examples
from services.gateway.routes.callbacks import (
    CANCELLED,
    CHANGE,
    CREATED,
    FAILURES,
    IF_NONE_MATCH_ANY,
    LIST,
    NOT_FOUND,
    NOT_MODIFIED,
    PAGE,
    PRECONDITION_FAILED,
    RESCHEDULED,
    STATUS,
    cancel_callback,
    get_callback,
    list_callbacks,
    put_callback,
    reschedule_callback,
)
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    CURSOR,
    IF_MATCH,
    IF_NONE_MATCH,
    KEY_SCHEMA,
    Route,
    ok,
    problem,
)
from shared.contracts.schedule_requests import CallbackCreated, CancelGroupResponse
from shared.contracts.schedules import ScheduleCallback
from shared.http.openapi import Body, Parameter, Response

TAG: Final = "groups"

_GROUP_KEY: Final = Parameter(
    "group_key", "path", "The key of the group.", KEY_SCHEMA, example="user-7"
)
_EVENT_KEY: Final = Parameter(
    "event_key", "path", "The key of the callback in its group.", KEY_SCHEMA, example="reminder-1"
)
_KEYS: Final = (_GROUP_KEY, _EVENT_KEY)


def routes(example_url: str) -> tuple[Route, ...]:
    """Return the routes; the callbacks in the examples call `example_url`."""
    return (
        Route(
            method="GET",
            path="/v1/groups/{group_key}/callbacks",
            operation_id="list_group",
            handler=list_callbacks,
            tag=TAG,
            summary="List the callbacks of a group",
            description="The same as `GET /v1/callbacks?group_key=`.",
            parameters=(_GROUP_KEY, *PAGE),
            responses={200: LIST, **FAILURES},
        ),
        Route(
            method="DELETE",
            path="/v1/groups/{group_key}/callbacks",
            operation_id="cancel_group",
            handler=cancel_callback,
            tag=TAG,
            summary="Cancel a group",
            description="Cancels every callback of the group that has not ended. A group of more"
            " than some ten thousand takes several requests: repeat it with `next_cursor` as"
            " `cursor` until that is null. What is cancelled stays so, whatever follows.",
            parameters=(_GROUP_KEY, CURSOR),
            responses={
                200: ok(
                    "The counts of all results, and the first thousand results.",
                    CancelGroupResponse,
                    {
                        "items": [{"id": examples.ID, "result": "cancelled"}],
                        "counts": {"cancelled": 1},
                        "next_cursor": None,
                    },
                ),
                **FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            operation_id="get_callback_by_key",
            handler=get_callback,
            tag=TAG,
            summary="Get the status of a callback by its keys",
            description="The same as by id.",
            parameters=(*_KEYS, IF_NONE_MATCH),
            responses={200: STATUS, **NOT_MODIFIED, **NOT_FOUND, **FAILURES},
        ),
        Route(
            method="PUT",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            operation_id="put_callback",
            handler=put_callback,
            tag=TAG,
            summary="Create or replace a callback by its keys",
            description="Replaces everything about a waiting callback: its time, URL, headers,"
            " context, secret and retries. It is then due 5 s later at the earliest. The body may"
            " repeat the keys of the path.",
            parameters=(*_KEYS, IF_MATCH, IF_NONE_MATCH_ANY),
            body=Body(
                ScheduleCallback,
                {"In a minute": {"url": example_url, "delay": 60, "context": {"text": "Hello."}}},
            ),
            responses={
                200: ok("Replaced.", CallbackCreated, CREATED),
                201: Response(
                    "Created.",
                    Body(CallbackCreated, {"Response": CREATED}),
                    {"Location": "The URL of its status."},
                ),
                409: problem("The callback is being delivered, or has ended."),
                **PRECONDITION_FAILED,
                **BODY_FAILURES,
                **FAILURES,
            },
        ),
        Route(
            method="PATCH",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            operation_id="reschedule_callback_by_key",
            handler=reschedule_callback,
            tag=TAG,
            summary="Reschedule or change a callback by its keys",
            description="The same as by id.",
            parameters=(*_KEYS, IF_MATCH),
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
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            operation_id="cancel_callback_by_key",
            handler=cancel_callback,
            tag=TAG,
            summary="Cancel a callback by its keys",
            description="The same as by id.",
            parameters=(*_KEYS, IF_MATCH),
            responses={200: CANCELLED, **NOT_FOUND, **PRECONDITION_FAILED, **FAILURES},
        ),
    )
