"""The routes `/v1/mailings`: each sends a request to mailings, which validates the fields."""

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import MAILING_ID, MESSAGE_ID
from services.gateway.parsing import idempotency_key, if_match, json_body
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    ETAG_HEADER,
    IF_MATCH,
    IF_NONE_MATCH,
    Dependencies,
    Handler,
    Route,
    failures,
    idempotency_header,
    ok,
    pagination,
    path_id,
    problem,
    status_filter,
)
from services.gateway.routes.resources import (
    changed,
    etag,
    found,
    id_in_path,
    listing,
    passed_on,
)
from shared.amqp.rpc import RequestContext
from shared.contracts.mailing_requests import (
    CANCEL_MAILING,
    CHANGE_MAILING,
    COUNT_AUDIENCE,
    CREATE_MAILING,
    DELETE_MAILING,
    GET_MAILING,
    LIST_MAILINGS,
    PAUSE_MAILING,
    RESUME_MAILING,
    START_MAILING,
    TEST_MAILING,
    Audience,
    ControlMailing,
    Mailing,
    Mailings,
    TestSent,
)
from shared.contracts.mailings import (
    AudienceFilter,
    MailingChanges,
    MailingStatus,
    NewMailing,
    TestPhone,
)
from shared.contracts.posting_requests import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from shared.contracts.requests import RpcOperation
from shared.http.openapi import Body, Response, link

TAG: Final = "mailings"

_FAILURES: Final = failures(
    "the broker, the database or mailings is unreachable", "Mailings did not respond in time"
)
# A stop is stored before delivery confirms it.
_CONTROL_FAILURES: Final = {
    **_FAILURES,
    504: problem(
        "Mailings or delivery did not respond in time. If `detail` says that delivery has not"
        " confirmed it, the change is stored, and Ringback repeats the request to delivery."
    ),
}
_NOT_FOUND: Final = {404: problem("The caller has no mailing with this id.")}
_REFUSED: Final = {409: problem("The status of the mailing does not allow it; see `detail`.")}
_PRECONDITION_FAILED: Final = {412: problem("The mailing has changed since its `ETag` was read.")}
_NOT_MODIFIED: Final = {304: Response("The mailing still has this `ETag`.", headers=ETAG_HEADER)}
_ID: Final = path_id("mailing", examples.ID)
_PAGE: Final = pagination(max_size=MAX_PAGE_SIZE, default_size=DEFAULT_PAGE_SIZE)
_MAILING: Final = {
    "id": examples.ID,
    "status": "running",
    "channel": "sms",
    "text": "Good morning! Your discount is {{ user.tag }}.",
    "template": None,
    "template_context": {},
    "start_at": "2026-11-20T12:00:00Z",
    "end_at": "2026-11-22T12:00:00Z",
    "filter": {"operator_codes": ["916", "926"], "tags": ["vip"]},
    "local_hours": {"from": "09:00", "to": "21:00"},
    "rate_per_minute": 6000,
    "created_at": "2026-11-20T11:00:00Z",
    "started_at": "2026-11-20T12:00:00Z",
    "ended_at": None,
    "reason": None,
    "etag": '"2"',
}
_FOUND: Final = replace(ok("The mailing.", Mailing, _MAILING), headers=ETAG_HEADER)
_CREATE: Final = {
    "At once, to everybody": {
        "text": "We are open again.",
        "start_at": "2026-11-20T12:00:00Z",
        "end_at": "2026-11-21T12:00:00Z",
    },
    "Later, in the daytime of each client": {
        "text": "Good morning! Your discount is {{ user.tag }}.",
        "start_at": "2026-11-20T12:00:00Z",
        "end_at": "2026-11-22T12:00:00Z",
        "filter": {"operator_codes": ["916", "926"], "tags": ["vip"]},
        "local_hours": {"from": "09:00", "to": "21:00"},
        "rate_per_minute": 6000,
    },
    "A draft": {"text": "Hello", "end_at": "2026-11-22T12:00:00Z", "draft": True},
}


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="POST",
            path="/v1/mailings",
            operation_id="create_mailing",
            handler=create_mailing,
            tag=TAG,
            summary="Create a mailing",
            description="Sends a text to all clients that match the filter, from `start_at` until"
            " `end_at`. Inside this window it starts at once, otherwise by itself at `start_at`. A"
            " draft waits for its start.",
            parameters=(
                idempotency_header(
                    "A repeat with the same key and body returns the same mailing and starts"
                    " nothing."
                ),
            ),
            body=Body(NewMailing, _CREATE),
            responses={
                201: Response(
                    "Created.",
                    Body(Mailing, {"Response": _MAILING}),
                    {"Location": "The URL of the mailing.", **ETAG_HEADER},
                    {
                        name: link(name, text, id="$response.body#/id")
                        for name, text in (
                            ("get_mailing", "The mailing."),
                            ("cancel_mailing", "Cancel it."),
                            ("list_mailing_messages", "Its messages."),
                        )
                    },
                ),
                409: problem("The Idempotency-Key was used with a different body."),
                **BODY_FAILURES,
                **_FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/mailings",
            operation_id="list_mailings",
            handler=listing(LIST_MAILINGS),
            tag=TAG,
            summary="List mailings",
            description="Only those of the caller.",
            parameters=(status_filter([status.value for status in MailingStatus]), *_PAGE),
            responses={
                200: ok(
                    "A page of mailings, newest first.",
                    Mailings,
                    {"items": [_MAILING], "next_cursor": None},
                ),
                **_FAILURES,
            },
        ),
        Route(
            method="POST",
            path="/v1/mailings/audience",
            operation_id="count_audience",
            handler=passed_on(COUNT_AUDIENCE),
            tag=TAG,
            summary="Count the clients that a filter matches",
            description="Nothing is saved.",
            body=Body(AudienceFilter, {"One tag": {"filter": {"tags": ["vip"]}}}),
            responses={
                200: ok("The number of clients.", Audience, {"clients": 200000}),
                **BODY_FAILURES,
                **_FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/mailings/{id}",
            operation_id="get_mailing",
            handler=get_mailing,
            tag=TAG,
            summary="Get a mailing",
            description="Mailings of another caller do not exist for you.",
            parameters=(_ID, IF_NONE_MATCH),
            responses={200: _FOUND, **_NOT_MODIFIED, **_NOT_FOUND, **_FAILURES},
        ),
        Route(
            method="PATCH",
            path="/v1/mailings/{id}",
            operation_id="change_mailing",
            handler=change_mailing,
            tag=TAG,
            summary="Change a mailing",
            description="A draft and a scheduled mailing can change every field. A running or"
            " paused one can change `end_at` and `rate_per_minute`: after an earlier end nothing is"
            " sent, wherever a message waits.",
            parameters=(_ID, IF_MATCH),
            body=Body(
                MailingChanges,
                {
                    "An earlier end": {"end_at": "2026-11-20T18:00:00Z"},
                    "Without local hours": {"local_hours": None},
                },
            ),
            responses={
                200: _FOUND,
                **_NOT_FOUND,
                **_REFUSED,
                **_PRECONDITION_FAILED,
                **BODY_FAILURES,
                **_CONTROL_FAILURES,
            },
        ),
        Route(
            method="DELETE",
            path="/v1/mailings/{id}",
            operation_id="delete_mailing",
            handler=delete_mailing,
            tag=TAG,
            summary="Delete a mailing",
            description="Deletes its statistics, too. A running or paused mailing must be cancelled"
            " first.",
            parameters=(_ID, IF_MATCH),
            responses={
                204: Response("Deleted."),
                **_NOT_FOUND,
                **_REFUSED,
                **_PRECONDITION_FAILED,
                **_FAILURES,
            },
        ),
        *(
            Route(
                method="POST",
                path=f"/v1/mailings/{{id}}/{name}",
                operation_id=f"{name}_mailing",
                handler=_control(operation),
                tag=TAG,
                summary=summary,
                description=description,
                parameters=(_ID, IF_MATCH),
                responses={
                    200: _FOUND,
                    **_NOT_FOUND,
                    **_REFUSED,
                    **_PRECONDITION_FAILED,
                    **_CONTROL_FAILURES,
                },
            )
            for name, operation, summary, description in _CONTROLS
        ),
        Route(
            method="POST",
            path="/v1/mailings/{id}/test",
            operation_id="test_mailing",
            handler=test_mailing,
            tag=TAG,
            summary="Send a test message",
            description="Sends the text to one phone, urgently. If a client has the phone, the text"
            " gets their fields. The message is not counted. A mailing has ten tests a minute."
            " After them, the status is 429.",
            parameters=(_ID,),
            body=Body(TestPhone, {"Your own phone": {"phone": "79161234567"}}),
            responses={
                200: ok("Published.", TestSent, {"message_id": examples.ID}),
                **_NOT_FOUND,
                **BODY_FAILURES,
                **_FAILURES,
            },
        ),
    )


_CONTROLS: Final = (
    (
        "start",
        START_MAILING,
        "Start a draft",
        "It runs from `start_at` on, or at once if that has passed.",
    ),
    (
        "pause",
        PAUSE_MAILING,
        "Pause a mailing",
        (
            "Two seconds after the response, no message of it is handed to a provider, wherever it"
            " waits. Unsent messages wait."
        ),
    ),
    (
        "resume",
        RESUME_MAILING,
        "Resume a paused mailing",
        "Waiting messages are sent, in local hours if the mailing has them.",
    ),
    (
        "cancel",
        CANCEL_MAILING,
        "Cancel a mailing",
        (
            "Two seconds after the response, no message of it is handed to a provider, wherever it"
            " waits. Unsent messages become `cancelled`."
        ),
    ),
)


async def create_mailing(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Create a mailing; respond after it is committed."""
    key = idempotency_key(request)
    mailing, _ = await json_body(request, deps.settings.max_body_bytes)
    body = b'{"mailing":%b,"idempotency_key":%b}' % (mailing, to_json(key))
    created = await deps.services.request(CREATE_MAILING, body, context)
    request[MAILING_ID] = created["id"]
    location = {"Location": f"/v1/mailings/{created['id']}"}
    return json_response(created, HTTPStatus.CREATED, location | etag(created))


async def get_mailing(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a mailing."""
    return await found(request, context, deps, GET_MAILING, {"id": _id_in(request)})


async def change_mailing(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Change a mailing; respond after the change is committed and confirmed by delivery."""
    return await changed(request, context, deps, CHANGE_MAILING, _id_in(request), "changes")


async def delete_mailing(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Delete a mailing."""
    body = to_json({"id": _id_in(request)} | if_match(request))
    await deps.services.request(DELETE_MAILING, body, context)
    return web.Response(status=HTTPStatus.NO_CONTENT)


def _control(operation: RpcOperation[ControlMailing]) -> Handler:
    async def control(
        request: web.Request, context: RequestContext, deps: Dependencies
    ) -> web.Response:
        body = to_json({"id": _id_in(request)} | if_match(request))
        mailing = await deps.services.request(operation, body, context)
        return json_response(mailing, headers=etag(mailing))

    return control


async def test_mailing(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send a test message; respond after it is published."""
    id_ = to_json(_id_in(request))
    test, _ = await json_body(request, deps.settings.max_body_bytes)
    body = b'{"id":%b,"test":%b}' % (id_, test)
    sent = await deps.services.request(TEST_MAILING, body, context)
    request[MESSAGE_ID] = sent["message_id"]
    return json_response(sent)


def _id_in(request: web.Request) -> str:
    return id_in_path(request, MAILING_ID, "mailing")
