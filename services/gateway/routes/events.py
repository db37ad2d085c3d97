"""The route `/v1/events`: publish an event to its exchange, and respond when it is confirmed."""

import asyncio
import time
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from pydantic import ValidationError

from services.gateway import examples
from services.gateway.middleware import EVENT_ID
from services.gateway.parsing import JSON, idempotency_key, invalid, json_body
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
from shared.amqp.codec import Properties
from shared.amqp.confirms import CONFIRM_TIMEOUT
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import (
    OutgoingMessage,
    Publisher,
    PublishRefusedError,
    PublishUnknownError,
    new_id,
)
from shared.amqp.rpc import RequestContext
from shared.contracts.context import field_errors
from shared.contracts.events import EVENT, Event
from shared.contracts.headers import APP_ID, TRACEPARENT
from shared.contracts.message_types import MESSAGE_TYPES
from shared.contracts.requests import FieldError
from shared.http.openapi import Body
from shared.http.problem import ProblemError
from shared.http.service_client import unavailable, unknown

TAG: Final = "events"

_EVENT: Final = MESSAGE_TYPES[EVENT]


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
    try:
        event = Event.model_validate_json(body)
    except ValidationError as error:
        raise invalid(field_errors(error)) from None
    if context.client_id not in (None, event.from_service):
        raise ProblemError(
            HTTPStatus.FORBIDDEN,
            "forbidden",
            "The service ticket is not that of the service that the event names.",
            errors=[FieldError(field="from_service", message="must be the ticket's client id")],
        )
    message_id = key or new_id()
    logical_id = request[EVENT_ID] = _EVENT.logical_id(event, message_id)
    message = OutgoingMessage(
        _EVENT.routing_key_of(event),
        Properties(
            content_type=JSON,
            type=EVENT,
            message_id=message_id,
            delivery_mode=PERSISTENT,
            timestamp=int(time.time()),
            app_id=APP_ID,
            headers={TRACEPARENT: context.traceparent} if context.traceparent else None,
        ),
        body,
        exchange=_EVENT.exchange,
    )
    await _publish(deps.publisher, message)
    return json_response({"id": logical_id}, HTTPStatus.ACCEPTED)


async def _publish(publisher: Publisher, message: OutgoingMessage) -> None:
    """Publish the message and wait for its confirmation.

    Raises:
        ProblemError: 503 if the broker refused it; 504 if the outcome is unknown.
    """
    try:
        # During an alarm the publisher itself would wait without a limit.
        async with asyncio.timeout(CONFIRM_TIMEOUT):
            await publisher.publish(message)
    except PublishRefusedError as error:
        raise unavailable(str(error)) from None
    except (PublishUnknownError, TimeoutError) as error:
        raise unknown(
            f"{error or 'The broker does not accept messages at present'}. It is unknown whether"
            " the event was accepted. Repeat it with the same event_id or Idempotency-Key;"
            " it takes effect once."
        ) from None


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
