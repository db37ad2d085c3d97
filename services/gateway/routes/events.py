"""The route `/v1/events`: publish an event to its exchange, and respond when it is confirmed."""

from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from services.gateway import examples
from services.gateway.middleware import EVENT_ID
from services.gateway.parsing import idempotency_key, json_body
from services.gateway.responses import json_response
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    Dependencies,
    Route,
    failures,
    idempotency_header,
    ok,
    problem,
)
from services.gateway.schemas import EventAccepted
from shared.amqp.rpc import RequestContext
from shared.contracts.events import Event
from shared.http.event_publishing import event_message
from shared.http.event_publishing import publish_event as publish_confirmed
from shared.http.openapi import Body

TAG: Final = "events"


def routes(example_url: str) -> tuple[Route, ...]:
    """Return the routes; the examples use the sandbox on the server of `example_url`."""
    return (
        Route(
            method="POST",
            path="/v1/events",
            operation_id="publish_event",
            handler=publish_event,
            tag=TAG,
            summary="Publish an event",
            description="For producers without AMQP. The body is the message `Event`; it is"
            " published byte for byte. The response is sent after the broker has confirmed the"
            " event, so an accepted event is not lost. A repeated event with the same `event_id`"
            " (or, without one, the same `Idempotency-Key`) has no further effect. With a service"
            " ticket, `from_service` must be its client id.",
            parameters=(
                idempotency_header(
                    "Identifies the event if the body has no `event_id`, so that it is safe to"
                    " repeat the request."
                ),
            ),
            body=Body(Event, _examples(examples.server(example_url))),
            responses={
                202: ok(
                    "Accepted. `id` identifies the event: its `event_id`, otherwise the"
                    " `Idempotency-Key`, otherwise a new id.",
                    EventAccepted,
                    {"id": "3f1c0d9a7b5e4c2f8a6d1e0b9c7f5a3d"},
                ),
                **BODY_FAILURES,
                **failures(
                    "the broker is unreachable, refuses the event, or has raised an alarm",
                    "The broker did not confirm in time",
                ),
                403: problem("`from_service` is not the client id of the service ticket."),
            },
        ),
    )


async def publish_event(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Publish an event byte for byte; respond after the broker has confirmed it."""
    key = idempotency_key(request)
    body, _ = await json_body(request, deps.settings.max_event_bytes)
    request[EVENT_ID], message = event_message(body, context, key)
    await publish_confirmed(deps.publisher, message)
    return json_response({"id": request[EVENT_ID]}, HTTPStatus.ACCEPTED)


def _examples(server: str) -> dict[str, Any]:
    return {
        "A user signed up": {
            "from_service": "auth",
            "event": "user_signed_up",
            "details": {
                "username": examples.USER_NAME,
                "user": f"{server}/auth/api/v1/users/{examples.USER}/",
            },
        },
        "A new episode": {
            "from_service": "fastapi",
            "event": "new_episode",
            "details": {"series": [f"{server}/fastapi/api/v1/series/{examples.SERIES}/"]},
        },
        "Reactions to a review": {
            "from_service": "activity_api",
            "event": "reactions_summary",
            "details": {
                "stats": [
                    {
                        "type": "like",
                        "total": 7,
                        "target": f"{server}/activity_api/api/v1/reviews/7",
                    }
                ]
            },
        },
        "New movies": {
            "from_service": "cinema_scanner",
            "event": "new_movies",
            "details": {"movies": [f"{server}/fastapi/api/v1/movies/{examples.MOVIE}/"]},
        },
    }
