"""The middleware around all HTTP handlers: maps errors to problems, counts and logs requests."""

import logging
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.typedefs import Middleware

from services.gateway.messenger.codes import error_response, is_messenger
from services.gateway.metrics import UNMATCHED, Requests
from shared.http.problem import ProblemError
from shared.http.tracing import traced, traceparent_of
from shared.tracing import active

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Values that handlers set for the log line: ids of the path, after validation, and of the response.
CLIENT_ID: Final = web.RequestKey("client_id", str)
SCHEDULE_ID: Final = web.RequestKey("schedule_id", str)
EVENT_ID: Final = web.RequestKey("event_id", str)
POSTING_ID: Final = web.RequestKey("posting_id", str)
MAILING_ID: Final = web.RequestKey("mailing_id", str)
MESSAGE_ID: Final = web.RequestKey("message_id", str)
RECIPIENT_ID: Final = web.RequestKey("recipient_id", str)
ENDPOINT_ID: Final = web.RequestKey("endpoint_id", str)
USER_ID: Final = web.RequestKey("user_id", int)
DETAIL: Final = web.RequestKey("detail", str)

# The problem type and detail of aiohttp's own errors.
_KINDS: Final = {
    HTTPStatus.NOT_FOUND: ("not_found", "Resource not found."),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        "method_not_allowed",
        "The resource does not support this method.",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("too_large", "The body is too large."),
}
# Probes come every few seconds; they are not logged.
_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})


def middleware(*, trust_traceparent: bool) -> Middleware:
    """Return the outermost middleware of the application."""
    requests = Requests()

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        resource = request.match_info.route.resource
        route = UNMATCHED if resource is None else resource.canonical
        try:
            response = await handler(request)
        except ProblemError as problem:
            request[DETAIL] = str(problem)
            response = _error(request, problem)
        except web.HTTPException as error:
            kind = _KINDS.get(HTTPStatus(error.status))
            # Redirects stay unchanged.
            response = error if kind is None else _error(request, _problem(error, *kind))
        except ConnectionError:
            # The client has disconnected: the response is only counted.
            response = web.Response(status=HTTPStatus.BAD_REQUEST)
        except Exception:
            logger.exception("bug in a handler", extra={"route": route})
            bug = ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "Internal error.")
            response = _error(request, bug)
        seconds = time.monotonic() - started
        requests.observe(route, request.method, response.status, seconds)
        if route not in _QUIET:
            _log(request, route, response.status, seconds)
        return response

    if active.tracer is None:
        return handle
    return traced(handle, active.tracer, trusted=trust_traceparent, quiet=_QUIET)


async def on_expect(request: web.Request) -> web.Response | None:
    """Send 100 Continue, or return the problem 417.

    aiohttp calls this before the middleware, so the middleware cannot replace its error page.
    """
    if request.version < HttpVersion11:
        return None
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        return _error(
            request,
            ProblemError(
                HTTPStatus.EXPECTATION_FAILED,
                "expectation_failed",
                "Expect may only be 100-continue.",
            ),
        )
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # As in aiohttp: the response itself has not started.
    request.writer.output_size = 0
    return None


def _error(request: web.Request, problem: ProblemError) -> web.Response:
    return error_response(problem) if is_messenger(request.path) else problem.response()


def _problem(error: web.HTTPException, kind: str, detail: str) -> ProblemError:
    """Return the problem in place of aiohttp's error page."""
    allow = error.headers.get(hdrs.ALLOW)
    return ProblemError(
        HTTPStatus(error.status), kind, detail, headers={hdrs.ALLOW: allow} if allow else None
    )


def _log(request: web.Request, route: str, status: int, seconds: float) -> None:
    trace = traceparent_of(request)
    context = {
        "method": request.method,
        "route": route,
        "status": status,
        "duration": round(seconds, 6),
        "client_id": request.get(CLIENT_ID),
        "schedule_id": request.get(SCHEDULE_ID),
        "event_id": request.get(EVENT_ID),
        "posting_id": request.get(POSTING_ID),
        "mailing_id": request.get(MAILING_ID),
        "message_id": request.get(MESSAGE_ID),
        "recipient_id": request.get(RECIPIENT_ID),
        "endpoint_id": request.get(ENDPOINT_ID),
        "user_id": request.get(USER_ID),
        "trace_id": trace[3:35] if trace else None,
    }
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("http request failed", extra=context | {"detail": request.get(DETAIL)})
    else:
        logger.info("http request", extra=context)
