"""The overview: the state of everything on one page, read once for all browsers."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic_core import to_json

from services.console.live import stream
from services.console.minutes import SPANS, attempt_charts, span_of
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Site, Visit
from shared.amqp.rpc import RequestContext
from shared.contracts.journal_figures import READ_OVERVIEW
from shared.http.problem import ProblemError

# What the console reads for everybody, on behalf of no user.
_FOR_ALL = RequestContext(None, operator=True)


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/", Role.VIEWER, "Overview", overview, section="Watch"),
        Page("GET", "/live/overview", Role.VIEWER, "Overview", live_overview, live=True),
    )


async def overview(visit: Visit) -> web.StreamResponse:
    """Return the overview. Without the journal it says so."""
    span = span_of(visit.query.get("minutes"))
    try:
        found = await _reader(visit.site, span)()
    except ProblemError as problem:
        return visit.render("overview.html", spans=SPANS, span=span, found=None, cause=str(problem))
    return visit.render("overview.html", spans=SPANS, span=span, **_values(visit, found, span))


async def live_overview(visit: Visit) -> web.StreamResponse:
    """Stream the figures of the overview."""
    span = span_of(visit.query.get("minutes"))
    template = visit.site.environment.get_template("overview_figures.html")

    def render(found: Any) -> str:
        return template.render(visit=visit, span=span, **_values(visit, found, span))

    async with visit.site.feeds.follow(
        ("overview", span), lambda: _reader(visit.site, span)
    ) as values:
        return await stream(visit, values, render)


def _reader(site: Site, span: int) -> Callable[[], Awaitable[Any]]:
    async def read() -> Any:
        return await site.services.request(READ_OVERVIEW, to_json({"minutes": span}), _FOR_ALL)

    return read


def _values(visit: Visit, found: Any, span: int) -> dict[str, Any]:
    attempts, durations = attempt_charts(found["minutes"], found["at"], span, visit.zone)
    return {"found": found, "attempts": attempts, "durations": durations}
