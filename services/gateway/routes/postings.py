"""The routes `/v1/postings`: each sends a request to mailings.

Bodies are passed on unchanged; only mailings validates their fields.
"""

from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.middleware import POSTING_ID
from services.gateway.parsing import QUERY, idempotency_key, json_body
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    BODY_FAILURES,
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
from services.gateway.routes.resources import id_in_path, listing
from shared.amqp.rpc import RequestContext
from shared.contracts.callback import IDENTIFIER_PATTERN
from shared.contracts.posting_requests import (
    CREATE_POSTING,
    DEFAULT_PAGE_SIZE,
    GET_POSTING,
    LIST_POSTING_MESSAGES,
    LIST_POSTINGS,
    MAX_PAGE_SIZE,
    MessageState,
    PostingAccepted,
    PostingMessages,
    Postings,
    PostingStatus,
)
from shared.contracts.postings import Posting
from shared.http.openapi import Body, Parameter, Response

TAG: Final = "postings"

_FAILURES: Final = failures(
    "the broker, the database or mailings is unreachable", "Mailings did not respond in time"
)
_NOT_FOUND: Final = {404: problem("The client has no posting with this id.")}
_PAGE: Final = pagination(max_size=MAX_PAGE_SIZE, default_size=DEFAULT_PAGE_SIZE)
_ID: Final = path_id("posting", examples.ID)


def routes(example_url: str) -> tuple[Route, ...]:
    """Return the routes; the examples use the sandbox on the server of `example_url`."""
    return (
        Route(
            method="POST",
            path="/v1/postings",
            operation_id="create_posting",
            handler=create_posting,
            tag=TAG,
            summary="Send a template to a list of users",
            description="The response is sent after the posting is committed. From then on every"
            " user of the list is processed, and a restart of Ringback sends no message twice."
            " Users who have not enabled this channel or this kind of notification get no message.",
            parameters=(
                idempotency_header(
                    "A repeat with the same key and body returns the same response and sends"
                    " nothing."
                ),
            ),
            body=Body(Posting, _examples(examples.server(example_url))),
            responses={
                202: Response(
                    "Accepted.",
                    Body(PostingAccepted, {"Response": {"id": examples.ID, "status": "accepted"}}),
                    {"Location": "The URL of its progress."},
                ),
                409: problem("The Idempotency-Key was used with a different body."),
                **BODY_FAILURES,
                **_FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/postings",
            operation_id="list_postings",
            handler=listing(LIST_POSTINGS),
            tag=TAG,
            summary="List postings",
            description="Postings without a client, such as those from rules, are visible to all.",
            parameters=(
                Parameter(
                    "from_event",
                    "query",
                    "Only postings caused by this event.",
                    {"type": "string", "minLength": 1, "pattern": IDENTIFIER_PATTERN},
                ),
                *_PAGE,
            ),
            responses={
                200: ok(
                    "A page of postings, newest first.",
                    Postings,
                    {"items": [_PROGRESS], "next_cursor": None},
                ),
                **_FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/postings/{id}",
            operation_id="get_posting",
            handler=get_posting,
            tag=TAG,
            summary="Get the progress of a posting",
            description="Counts its pages, its recipients and its messages so far.",
            parameters=(_ID,),
            responses={
                200: ok("The progress.", PostingStatus, _PROGRESS | {"skipped": _SKIPPED}),
                **_NOT_FOUND,
                **_FAILURES,
            },
        ),
        Route(
            method="GET",
            path="/v1/postings/{id}/messages",
            operation_id="list_posting_messages",
            handler=list_posting_messages,
            tag=TAG,
            summary="List the messages of a posting",
            description="Includes recipients who got no message, with the reason.",
            parameters=(_ID, status_filter([state.value for state in MessageState]), *_PAGE),
            responses={
                200: ok(
                    "A page of messages, in the order of their ids.",
                    PostingMessages,
                    {"items": [_MESSAGE], "next_cursor": None},
                ),
                **_NOT_FOUND,
                **_FAILURES,
            },
        ),
    )


async def create_posting(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Create a posting; respond after it is committed."""
    key = idempotency_key(request)
    posting, _ = await json_body(request, deps.settings.max_body_bytes)
    body = b'{"posting":%b,"idempotency_key":%b}' % (posting, to_json(key))
    accepted = await deps.services.request(CREATE_POSTING, body, context)
    request[POSTING_ID] = accepted["id"]
    location = f"/v1/postings/{accepted['id']}"
    return json_response(accepted, HTTPStatus.ACCEPTED, {"Location": location})


async def get_posting(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return the progress of a posting."""
    body = to_json({"id": id_in_path(request, POSTING_ID, "posting")})
    return json_response(await deps.services.request(GET_POSTING, body, context))


async def list_posting_messages(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a page of the messages of a posting."""
    body = to_json(request[QUERY] | {"id": id_in_path(request, POSTING_ID, "posting")})
    return json_response(await deps.services.request(LIST_POSTING_MESSAGES, body, context))


def _examples(server: str) -> dict[str, Any]:
    users = f"{server}/auth/api/v1/users/"
    return {
        "A link to confirm an address": {
            "receivers": f"{users}?id={examples.USER}",
            "template": "email/email_confirmation.md",
            "delivery_type": ["email"],
            "template_context": {"confirmation_link": "http://auth/abcDe4"},
        },
        "A code by SMS, valid for two minutes": {
            "receivers": f"{users}?id={examples.USER}",
            "template": "sms/phone_confirmation.md",
            "delivery_type": ["sms"],
            "expires_in": "120 sec",
            "template_context": {"secret_code": "1234"},
        },
        "New movies, to all subscribers": {
            "from_event": "new-movies-2026-11-20",
            "receivers": f"{users}?is_active=True&email_notifications=True"
            "&page_number=1&page_size=500",
            "template": "email/new_movies.md",
            "delivery_type": ["email"],
            "expires_in": "3 days",
            "template_context": {"movies": f"{server}/fastapi/api/v1/movies/?new=True"},
        },
    }


_PROGRESS: Final = {
    "id": examples.ID,
    "status": "sending",
    "reason": None,
    "from_event": "new-movies-2026-11-20",
    "template": "email/new_movies.md",
    "delivery_type": ["email"],
    "accepted_at": "2026-11-20T12:00:00Z",
    "expires_at": "2026-11-23T12:00:00Z",
    "pages": 4,
    "receivers": 1720,
    "messages": {"created": 120, "sent": 1500, "failed": 3, "expired": 0, "skipped": 97},
}
_SKIPPED: Final = {"no e-mail address": 31, "new_movies not enabled": 66}
_MESSAGE: Final = {
    "id": "0b0c3f0e-5d0b-5a50-9f5c-3b1c3a7b6f10",
    "user_id": examples.USER,
    "channel": "email",
    "status": "sent",
    "reason": None,
    "created_at": "2026-11-20T12:00:01Z",
    "settled_at": "2026-11-20T12:00:02Z",
}
