"""The routes by which users of the messenger get their events: long polls and streams."""

from typing import Final

from aiohttp import web

from services.gateway.messenger.bodies import read_fields
from services.gateway.messenger.declaration import (
    BODY_FAILURES,
    EXAMPLE_TOKEN,
    INVALID_TOKEN,
    SIGNED_IN,
    TAG,
    failures,
    fields,
    invalid_parameters,
)
from services.gateway.messenger.schemas import PolledEvent, PollForm
from services.gateway.routes.declaration import Dependencies, Route, ok
from services.gateway.rpc import unavailable
from shared.amqp.rpc import RequestContext
from shared.contracts.polls import MAX_CURSOR
from shared.http.openapi import Parameter, Response, TextBody

_CURSOR: Final = "MS40Mg"
_EVENT: Final = {
    "type": "new_message",
    "event": {
        "message_id": 7,
        "to_id": 1,
        "from_id": 2,
        "created_at": 1795335960,
        "text": "Hello",
    },
    "next_cursor": _CURSOR,
}
_STREAM: Final = (
    f"id: {_CURSOR}\n"
    'data: {"type":"new_message","event":{"message_id":7,"to_id":1,"from_id":2,'
    '"created_at":1795335960,"text":"Hello"}}\n\n'
)


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="POST",
            path="/events/polling",
            operation_id="poll_events",
            handler=poll_events,
            tag=TAG,
            summary="Wait for your events",
            description="Returns the next unseen event: at once if there is one, otherwise as soon"
            ' as one happens. After `timeout` seconds the response is `{"events": []}`. With'
            ' `limit`, it is `{"events": […], "next_cursor"}`.',
            body=fields(
                PollForm,
                {
                    "The next event": {"token": EXAMPLE_TOKEN, "timeout": 25},
                    "Events after a cursor": {
                        "token": EXAMPLE_TOKEN,
                        "cursor": _CURSOR,
                        "limit": 100,
                    },
                },
            ),
            schemes=SIGNED_IN,
            responses={
                200: ok("An event, or a list of events.", PolledEvent, _EVENT),
                **INVALID_TOKEN,
                **invalid_parameters("cursor: is not a valid cursor"),
                **BODY_FAILURES,
                **failures(),
            },
        ),
        Route(
            method="GET",
            path="/events/stream",
            operation_id="stream_events",
            handler=stream_events,
            tag=TAG,
            summary="Stream your events",
            description="Server-sent events. Each has a cursor as its `id`, and `data` is"
            ' `{"type", "event"}`. The token is in the header `Authorization` or in the query.',
            parameters=(
                Parameter(
                    "token",
                    "query",
                    "The token of a sign-in.",
                    {"type": "string", "maxLength": 1000, "pattern": "^.*$"},
                ),
                Parameter(
                    "Last-Event-ID",
                    "header",
                    "The cursor to continue after.",
                    {"type": "string", "maxLength": MAX_CURSOR, "pattern": "^[A-Za-z0-9_-]*$"},
                    example=_CURSOR,
                ),
            ),
            schemes=SIGNED_IN,
            responses={
                200: Response("A stream of events.", TextBody({"text/event-stream": _STREAM})),
                **INVALID_TOKEN,
                **invalid_parameters("cursor: is not a valid cursor"),
                **failures(),
            },
        ),
    )


async def poll_events(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return the next events of a user, or wait for them."""
    del context, deps
    given = await read_fields(request)
    given.token_hash(request)
    given.parse(PollForm)
    raise unavailable("not available yet")


async def stream_events(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.StreamResponse:
    """Stream the events of a user."""
    del request, context, deps
    raise unavailable("not available yet")
