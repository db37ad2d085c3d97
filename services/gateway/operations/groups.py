"""The operations of `/v1/groups`: callbacks by the caller's own keys."""

from collections.abc import Sequence
from typing import Final

from services.gateway import examples
from services.gateway.operations.callbacks import (
    ANY,
    CANCELLED,
    LIST,
    MOVE,
    MOVED,
    NOT_FOUND,
    PAGE,
    STATUS,
)
from services.gateway.operations.declaring import BODY, ok
from shared.contracts.schedule_requests import CancelGroupResponse
from shared.http.openapi import Operation, Parameter

TAG: Final = "groups"

_GROUP_KEY: Final = Parameter("group_key", "path", "The group's key.", example="user-7")
_EVENT_KEY: Final = Parameter("event_key", "path", "The event's key.", example="reminder-1")
_KEYS: Final = (_GROUP_KEY, _EVENT_KEY)


def operations() -> Sequence[Operation]:
    """All of them."""
    return (
        Operation(
            id="list_group",
            method="get",
            path="/v1/groups/{group_key}/callbacks",
            tag=TAG,
            summary="List the callbacks of a group",
            parameters=(_GROUP_KEY, *PAGE),
            answers={200: LIST, **ANY},
        ),
        Operation(
            id="cancel_group",
            method="delete",
            path="/v1/groups/{group_key}/callbacks",
            tag=TAG,
            summary="Cancel a whole group",
            parameters=(_GROUP_KEY,),
            answers={
                200: ok(
                    "What became of each; all are counted, the first thousand are named.",
                    CancelGroupResponse,
                    {
                        "items": [{"id": examples.ID, "result": "cancelled"}],
                        "counts": {"cancelled": 1},
                    },
                ),
                **ANY,
            },
        ),
        Operation(
            id="get_event",
            method="get",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            tag=TAG,
            summary="See how a callback is, by its keys",
            parameters=_KEYS,
            answers={200: STATUS, **NOT_FOUND, **ANY},
        ),
        Operation(
            id="reschedule_event",
            method="patch",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            tag=TAG,
            summary="Move a callback, by its keys",
            parameters=_KEYS,
            body=MOVE,
            answers={200: MOVED, **NOT_FOUND, **BODY, **ANY},
        ),
        Operation(
            id="cancel_event",
            method="delete",
            path="/v1/groups/{group_key}/callbacks/{event_key}",
            tag=TAG,
            summary="Cancel a callback, by its keys",
            parameters=_KEYS,
            answers={200: CANCELLED, **NOT_FOUND, **ANY},
        ),
    )
