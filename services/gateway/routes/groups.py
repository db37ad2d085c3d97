"""The routes `/v1/groups`: callbacks by the client's own keys."""

from typing import Final

from services.gateway import examples
from services.gateway.routes.callbacks import (
    CANCELLED,
    FAILURES,
    LIST,
    NEW_TIME,
    NOT_FOUND,
    PAGE,
    RESCHEDULED,
    STATUS,
    cancel_callback,
    get_callback,
    list_callbacks,
    reschedule_callback,
)
from services.gateway.routes.declaration import BODY_FAILURES, KEY_SCHEMA, Route, ok
from shared.contracts.schedule_requests import CancelGroupResponse
from shared.http.openapi import Parameter

TAG: Final = "groups"

_GROUP_KEY: Final = Parameter(
    "group_key", "path", "The key of the group.", KEY_SCHEMA, example="user-7"
)
_EVENT_KEY: Final = Parameter(
    "event_key", "path", "The key of the callback in its group.", KEY_SCHEMA, example="reminder-1"
)
_KEYS: Final = (_GROUP_KEY, _EVENT_KEY)


def routes() -> tuple[Route, ...]:
    """Return the routes; their handlers are those of `/v1/callbacks`."""
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
            description="Cancels every callback of the group that has not ended.",
            parameters=(_GROUP_KEY,),
            responses={
                200: ok(
                    "The counts of all results, and the first thousand results.",
                    CancelGroupResponse,
                    {
                        "items": [{"id": examples.ID, "result": "cancelled"}],
                        "counts": {"cancelled": 1},
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
            parameters=_KEYS,
            responses={200: STATUS, **NOT_FOUND, **FAILURES},
        ),
        Route(
            method="PATCH",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            operation_id="reschedule_callback_by_key",
            handler=reschedule_callback,
            tag=TAG,
            summary="Reschedule a callback by its keys",
            description="The same as by id.",
            parameters=_KEYS,
            body=NEW_TIME,
            responses={200: RESCHEDULED, **NOT_FOUND, **BODY_FAILURES, **FAILURES},
        ),
        Route(
            method="DELETE",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            operation_id="cancel_callback_by_key",
            handler=cancel_callback,
            tag=TAG,
            summary="Cancel a callback by its keys",
            description="The same as by id.",
            parameters=_KEYS,
            responses={200: CANCELLED, **NOT_FOUND, **FAILURES},
        ),
    )
