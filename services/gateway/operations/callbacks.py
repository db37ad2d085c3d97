"""The operations of `/v1/callbacks`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from services.gateway import examples
from services.gateway.operations.declaring import (
    BODY,
    failures,
    idempotency_key,
    identity,
    in_state,
    ok,
    page,
    problem,
)
from services.gateway.schemas import Batch, Move
from shared.contracts.schedule_requests import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    CallbackCreated,
    CallbackPage,
    CallbacksCreated,
    CallbackStatus,
    CancelResponse,
    RescheduleResponse,
    RetryCallbacks,
    RetryResponse,
)
from shared.contracts.schedules import ScheduleCallback, Status
from shared.http.openapi import Body, Operation, Parameter, Response

TAG: Final = "callbacks"

ANY: Final = failures(
    "broker, database or scheduler are away", "The scheduler did not answer in time"
)
NOT_FOUND: Final = {404: problem("The caller has no such callback.")}
PAGE: Final = (
    in_state([status.value for status in Status]),
    *page(longest=MAX_PAGE_SIZE, default=DEFAULT_PAGE_SIZE),
)
MOVE: Final = Body(Move, {"In a minute": {"delay": 60}, "At a moment": {"run_at": examples.LATER}})
MOVED: Final = ok(
    "What became of the wish: `result` says whether it was moved, or why not.",
    RescheduleResponse,
    {"id": examples.ID, "result": "rescheduled", "run_at": examples.LATER},
)
CANCELLED: Final = ok(
    "What became of the wish: `cancelled`; `in_flight`: on its way to the receiver, no more tries"
    " follow; `already_notified` or `already_failed`: too late.",
    CancelResponse,
    {"id": examples.ID, "result": "cancelled"},
)
STATUS: Final = ok("Its status.", CallbackStatus, examples.STATUS)
LIST: Final = ok(
    "A page, newest first.", CallbackPage, {"items": [examples.STATUS], "next_cursor": None}
)


_ID: Final = identity("callback", examples.ID)


def operations(example_url: str) -> Sequence[Operation]:
    """All of them; examples call `example_url`."""
    create = Operation(
        id="create_callback",
        method="post",
        path="/v1/callbacks",
        tag=TAG,
        summary="Schedule a callback",
        description="Answered once it is committed: from then on it fires at least once, at"
        " `run_at` (or after `delay` seconds; with neither, now), never earlier.",
        parameters=(
            idempotency_key(
                "A repeat with the same key and body answers the same and schedules nothing."
            ),
        ),
        body=Body(ScheduleCallback, examples.callbacks(example_url)),
        answers={
            201: Response(
                "Scheduled.",
                Body(CallbackCreated, {"Response": examples.CREATED}),
                {"Location": "Where its status is."},
            ),
            409: problem("The keys are in use, or the Idempotency-Key was used for another body."),
            403: problem("The AMQP exchange is not one that notifications may go to."),
            **BODY,
            **ANY,
        },
    )
    return (
        create,
        Operation(
            id="list_callbacks",
            method="get",
            path="/v1/callbacks",
            tag=TAG,
            summary="List callbacks",
            parameters=(
                Parameter("group_key", "query", "Only those of this group."),
                Parameter("event_key", "query", "Only those with this event key."),
                *PAGE,
            ),
            answers={200: LIST, **ANY},
        ),
        Operation(
            id="get_callback",
            method="get",
            path="/v1/callbacks/{id}",
            tag=TAG,
            summary="See how a callback is",
            parameters=(_ID,),
            answers={200: STATUS, **NOT_FOUND, **ANY},
        ),
        Operation(
            id="reschedule_callback",
            method="patch",
            path="/v1/callbacks/{id}",
            tag=TAG,
            summary="Move a callback",
            description="In every phase, also between retries.",
            parameters=(_ID,),
            body=MOVE,
            answers={200: MOVED, **NOT_FOUND, **BODY, **ANY},
        ),
        Operation(
            id="cancel_callback",
            method="delete",
            path="/v1/callbacks/{id}",
            tag=TAG,
            summary="Cancel a callback",
            description="In every phase, also between retries.",
            parameters=(_ID,),
            answers={200: CANCELLED, **NOT_FOUND, **ANY},
        ),
        Operation(
            id="create_callbacks",
            method="post",
            path="/v1/callbacks/batch",
            tag=TAG,
            summary="Schedule up to 1,000 callbacks",
            description="Each is accepted or refused by itself, and answered at its place. A bare"
            " list is taken, too.",
            body=Body(Batch, {"Two": examples.batch(example_url)}),
            answers={
                200: ok("An answer for each, in order.", CallbacksCreated, examples.CREATED_BATCH),
                **BODY,
                **ANY,
            },
        ),
        Operation(
            id="retry_callbacks",
            method="post",
            path="/v1/callbacks/retry",
            tag=TAG,
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
                200: ok(
                    "Those that were started.", RetryResponse, {"count": 1, "ids": [examples.ID]}
                ),
                **BODY,
                **NOT_FOUND,
                **ANY,
            },
        ),
        replace(
            create,
            id="add_callback",
            path="/v1/add",
            summary="Schedule a callback (short path)",
            description="The same as `POST /v1/callbacks`.",
        ),
    )
