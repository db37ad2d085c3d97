"""The handler type, and the parameters and responses that the declarations of routes share."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel

from services.gateway.messenger.limits import Limits
from services.gateway.parsing import IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_PATTERN
from services.gateway.polls.reading import EventReader
from services.gateway.polls.waiters import Waiters
from services.gateway.settings import GatewaySettings
from shared.amqp.publisher import Publisher
from shared.amqp.rpc import RequestContext
from shared.contracts.schedules import KEY_PATTERN
from shared.http.openapi import Body, Parameter, Response
from shared.http.openapi import Route as OpenApiRoute
from shared.http.problem import PROBLEM_JSON, Problem
from shared.http.service_client import ServiceClient


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The collaborators of the handlers."""

    services: ServiceClient
    publisher: Publisher
    settings: GatewaySettings
    limits: Limits
    waiters: Waiters
    user_events: EventReader


# The context holds the verified client id and the trace.
Handler = Callable[[web.Request, RequestContext, Dependencies], Awaitable[web.StreamResponse]]
Route = OpenApiRoute[Handler]


def ok(description: str, model: type[BaseModel], example: Any) -> Response:
    """Return a success response with this model as its body."""
    return Response(description, Body(model, {"Response": example}))


def problem(description: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error response."""
    return Response(description, Body(Problem, media_types=(PROBLEM_JSON,)), headers or {})


KEY_SCHEMA: Final = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": KEY_PATTERN}


def failures(unavailable: str, no_response: str) -> Mapping[int, Response]:
    """Return the errors of every route; the texts are the causes of 503 and 504."""
    return {
        401: problem(
            "The service ticket is invalid, or required and missing.",
            {"WWW-Authenticate": "How to authenticate."},
        ),
        403: problem("The service that owns the data requires a service ticket."),
        422: problem("The input is invalid; `errors` names every rejected field."),
        429: problem(
            "The client exceeds the rate limit.",
            {"Retry-After": "Seconds to wait before the next request."},
        ),
        500: problem("A bug in Ringback."),
        503: problem(
            f"Unavailable: {unavailable}. Nothing was done.",
            {"Retry-After": "Seconds to wait before the next request."},
        ),
        504: problem(f"{no_response}. It is unknown whether the request was carried out."),
    }


BODY_FAILURES: Final = {
    400: problem("The body is not JSON; `detail` names the position."),
    408: problem("The body did not arrive in time."),
    413: problem("The body is too large."),
    415: problem("The media type of the body is not `application/json`."),
}


def idempotency_header(description: str) -> Parameter:
    """Return the header that makes a request safe to repeat."""
    schema = {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": IDEMPOTENCY_KEY_PATTERN,
    }
    return Parameter(IDEMPOTENCY_KEY, "header", description, schema)


def path_id(resource: str, example: str) -> Parameter:
    """Return the path parameter with the id of this kind of resource."""
    schema = {"type": "string", "format": "uuid"}
    return Parameter("id", "path", f"The id of the {resource}.", schema, example=example)


def status_filter(statuses: list[str]) -> Parameter:
    """Return the query parameter that selects items by status."""
    return Parameter(
        "status", "query", "Only items with this status.", {"type": "string", "enum": statuses}
    )


CURSOR: Final = Parameter(
    "cursor",
    "query",
    "`next_cursor` of the previous response.",
    {"type": "string", "minLength": 1, "maxLength": 255, "format": "cursor"},
)


def pagination(*, max_size: int, default_size: int) -> tuple[Parameter, ...]:
    """Return the query parameters that select a page of a list."""
    limit = {"type": "integer", "minimum": 1, "maximum": max_size, "default": default_size}
    return (
        CURSOR,
        Parameter("limit", "query", "The maximum number of items in the page.", limit),
    )


ETAG_HEADER: Final = {"ETag": "Identifies the state; for `If-Match` and `If-None-Match`."}
_ETAGS: Final = {"type": "string", "pattern": r'^(\*|(W/)?"[!\x23-\x2b\x2d-\x7e]*")$'}
IF_MATCH: Final = Parameter(
    "If-Match",
    "header",
    "Only if the resource still has this `ETag`. Otherwise the status is 412.",
    _ETAGS,
    example='"9f86d081884c7d659a2feaa0"',
)
IF_NONE_MATCH: Final = Parameter(
    "If-None-Match",
    "header",
    "If the resource still has this `ETag`, the status is 304, without a body.",
    _ETAGS,
)
