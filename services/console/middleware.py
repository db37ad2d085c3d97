"""What every request passes: session, role and form, and the mapping of errors to pages."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware
from multidict import MultiMapping
from yarl import URL

from services.console import metrics
from services.console.pages.declaration import Page
from services.console.security import SESSION_COOKIE, is_from_this_site
from services.console.settings import is_loopback
from services.console.sign_in.pages import NEXT, SIGN_IN
from services.console.sign_in.sessions import Session, Sessions
from services.console.visit import Site, Visit, selected_client
from shared.errors import InfrastructureError
from shared.http.problem import ProblemError
from shared.http.tracing import traced, traceparent_of
from shared.tracing import active

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The session of a request, for its log line and its error page.
SESSION: Final = web.RequestKey("session", Session)
# The field of a form with the token of the session.
TOKEN_FIELD: Final = "csrf"  # noqa: S105 - the name of a field
_FORM_TYPES: Final = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
_QUIET: Final = "/static/{name}"

# The heading and the advice of an error page, by status.
_TEXTS: Final = {
    HTTPStatus.BAD_REQUEST: ("The request is not valid", "Go back and try again."),
    HTTPStatus.UNAUTHORIZED: (
        "Your session has ended",
        "Nothing was done. Sign in again, then repeat the action.",
    ),
    HTTPStatus.FORBIDDEN: ("You may not do this", "Nothing was done."),
    HTTPStatus.NOT_FOUND: (
        "Not found",
        "It may be deleted, older than the retention, or belong to another client.",
    ),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        "This address is for another method",
        "Open the page from the navigation instead.",
    ),
    HTTPStatus.CONFLICT: ("This is not possible any more", "Reload the page to see the state."),
    HTTPStatus.PRECONDITION_FAILED: (
        "Somebody else has changed this in the meantime",
        "Nothing was done. Reload the page, then repeat the action.",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("The form is too large", "Nothing was done."),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: ("This is not a form", "Nothing was done."),
    HTTPStatus.UNPROCESSABLE_ENTITY: (
        "Some fields are not valid",
        "Nothing was done. Go back, correct them, and try again.",
    ),
    HTTPStatus.TOO_MANY_REQUESTS: ("Too many requests", "Try again in a few seconds."),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "A part of Ringback is unavailable",
        "Nothing was done. Try again in a few seconds.",
    ),
    HTTPStatus.GATEWAY_TIMEOUT: (
        "No response in time",
        "It is unknown whether an action was carried out. Check the state before you repeat it.",
    ),
}
_BUG: Final = ("This is a bug in Ringback", "The log of the console has the details.")


def middleware(site: Site, pages: Iterable[Page]) -> Middleware:
    """Return the outermost middleware: maps errors to pages, counts and logs requests.

    While tracing is on, requests have spans, except for parts of pages that update themselves.
    """

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        resource = request.match_info.route.resource
        page = metrics.UNMATCHED if resource is None else resource.canonical
        redirect = _to_configured_host(request, site.origin)
        response = redirect or await _guarded(request, handler, site)
        seconds = time.monotonic() - started
        metrics.observe(page, request.method, response.status, seconds)
        if page != _QUIET:
            _log(request, page, response.status, seconds)
        return response

    if active.tracer is None:
        return handle
    quiet = {_QUIET, *(page.path for page in pages if page.live)}
    # Anybody can open the sign-in page, so no caller may decide which traces are recorded.
    return traced(handle, active.tracer, trusted=False, quiet=quiet)


def bound(page: Page, site: Site, sessions: Sessions) -> web.RouteDef:
    """Return the aiohttp route of a page: session, role and form come before the handler."""

    async def handle(request: web.Request) -> web.StreamResponse:
        cookie = request.cookies.get(SESSION_COOKIE)
        session = None
        if cookie is not None and page.role is not None:
            session = await sessions.find(cookie, counts=not page.live)
        if session is not None:
            request[SESSION] = session
        if page.role is not None:
            if session is None:
                return _sign_in(request, page)
            if session.role < page.role:
                raise ProblemError(
                    HTTPStatus.FORBIDDEN,
                    "forbidden",
                    f"“{page.title}” requires the role {page.role}. You are {session.role}.",
                )
        visit = Visit(request, site, session, page.title, selected_client(request.query))
        if page.method == hdrs.METH_POST and session is not None:
            request = request.clone(client_max_size=page.max_body)
            form = await _form(request, session, site.origin)
            visit = Visit(request, site, session, page.title, visit.client_id, form)
        return await page.handler(visit)

    handle.__doc__ = page.handler.__doc__
    return web.route(page.method, page.path, handle)


async def _form(request: web.Request, session: Session, origin: str) -> MultiMapping[Any]:
    """Return the fields of a form that a page of this session has sent.

    Raises:
        ProblemError: 403, it was not; 415, it is not a form.
    """
    if not is_from_this_site(request.headers, origin):
        raise _foreign_form("It was sent by a page of another site.")
    if request.content_type not in _FORM_TYPES:
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported", "The body is not a form."
        )
    try:
        form = await request.post()
    except (ValueError, LookupError):  # broken, or in an unknown charset
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, "malformed", "The body is not a valid form."
        ) from None
    token = form.get(TOKEN_FIELD)
    if not isinstance(token, str) or not session.has_token(token):
        raise _foreign_form("Its token is missing, or from another session. Reload the page.")
    return form


def _foreign_form(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.FORBIDDEN, "foreign_form", detail)


def _sign_in(request: web.Request, page: Page) -> web.Response:
    """Return the redirect to the sign-in.

    Raises:
        ProblemError: 401, the browser would not follow it for an action, or for a live part.
    """
    if page.method == hdrs.METH_POST or page.live:
        raise ProblemError(
            HTTPStatus.UNAUTHORIZED, "unauthorized", "You are not signed in any more."
        )
    url = URL.build(path=SIGN_IN, query={NEXT: request.path_qs})
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={hdrs.LOCATION: str(url)})


def _to_configured_host(request: web.Request, origin: str) -> web.Response | None:
    """Return a redirect from localhost to 127.0.0.1, whose cookies are others, or None."""
    expected = URL(origin).host
    try:
        given = URL(f"http://{request.host}").host
    except ValueError:
        return None
    both_loopback = is_loopback(expected) and is_loopback(given)
    if request.method == hdrs.METH_GET and both_loopback and given != expected:
        return web.Response(
            status=HTTPStatus.TEMPORARY_REDIRECT, headers={hdrs.LOCATION: origin + request.path_qs}
        )
    return None


async def _guarded(request: web.Request, handler: Handler, site: Site) -> web.StreamResponse:
    """Return the response of the handler, or an error page."""
    try:
        return await handler(request)
    except ProblemError as problem:
        return _error_page(request, site, problem)
    except InfrastructureError as error:
        unavailable = ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", str(error))
        return _error_page(request, site, unavailable)
    except web.HTTPException as error:
        status = HTTPStatus(error.status)
        return _error_page(request, site, ProblemError(status, "http", _HTTP.get(status, "")))
    except ConnectionError:
        return web.Response(status=HTTPStatus.BAD_REQUEST)  # the browser has disconnected
    except Exception:
        logger.exception("bug in a page")
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return _error_page(request, site, ProblemError(status, "internal", ""))


# The details of aiohttp's own errors.
_HTTP: Final = {
    HTTPStatus.NOT_FOUND: "This page does not exist.",
    HTTPStatus.METHOD_NOT_ALLOWED: "The page does not support this method.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The form is larger than the page allows.",
}


def _error_page(request: web.Request, site: Site, problem: ProblemError) -> web.Response:
    heading, advice = _TEXTS.get(problem.status, _BUG)
    # The advice of other clients of the API does not fit here.
    hidden = problem.status == HTTPStatus.GATEWAY_TIMEOUT
    again = request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
    visit = Visit(request, site, request.get(SESSION), heading)
    headers = {
        name: value for name, value in (problem.headers or {}).items() if name == hdrs.RETRY_AFTER
    }
    signed_out = problem.status == HTTPStatus.UNAUTHORIZED
    return visit.render(
        "error.html",
        status=problem.status,
        headers=headers,
        heading=heading,
        detail="" if hidden else str(problem),
        advice=advice,
        errors=problem.errors,
        retry=SIGN_IN if signed_out else request.path_qs if again and headers else None,
        retry_title="Sign in again" if signed_out else "Try again",
    )


def _log(request: web.Request, page: str, status: int, seconds: float) -> None:
    session = request.get(SESSION)
    trace = traceparent_of(request)
    context = {
        "method": request.method,
        "route": page,
        "status": status,
        "duration": round(seconds, 6),
        "subject": None if session is None else session.subject,
        "trace_id": trace[3:35] if trace else None,
    }
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("console request failed", extra=context)
    else:
        logger.info("console request", extra=context)
