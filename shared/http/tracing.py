"""The spans of HTTP requests, and the trace context of what follows from a request."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from shared.contracts import headers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from aiohttp.typedefs import Middleware

    from shared.tracing.spans import Tracer

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# A client can send any other text as the method, so other methods are recorded as `_OTHER`.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"})
_TRACEPARENT: Final = web.RequestKey("traceparent", str)


def traceparent_of(request: web.Request) -> str | None:
    """Return the trace context of a request: that of its span, or the caller's."""
    return request.get(_TRACEPARENT) or headers.traceparent(request.headers)


def traced(
    middleware: Middleware, tracer: Tracer, *, trusted: bool, quiet: Collection[str]
) -> Middleware:
    """Return the middleware with a span around each request, except for the paths in `quiet`.

    A request without a trace begins one. Spans contain the template of the path, because the path
    and the query can contain a token.

    trusted: whether callers decide which of their traces are recorded. Otherwise, each request
        begins a trace with a link to that of its caller.
    """

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = None if resource is None else resource.canonical
        method = request.method if request.method in _METHODS else "_OTHER"
        given = headers.traceparent(request.headers)
        span = None
        if route not in quiet:
            span = tracer.start(
                method if route is None else f"{method} {route}",
                "server",
                {"http.request.method": method, "http.route": route, "url.scheme": request.scheme},
                parent=given if trusted else None,
                begin=True,
                link=None if trusted else given,
            )
        if span is None:
            return await middleware(request, handler)
        request[_TRACEPARENT] = span.traceparent
        with span:
            response = await middleware(request, handler)
            span.set("http.response.status_code", response.status)
            if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                span.fail(str(response.status))
            return response

    return handle
