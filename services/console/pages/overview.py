"""The overview: the state of everything on one page, read once for all browsers."""

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from aiohttp import web
from pydantic_core import to_json

from services.console.feeds import Read
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
    span = _span(visit)
    try:
        found = await _reader(visit.site, span)()
    except ProblemError as problem:
        return visit.render("overview.html", spans=SPANS, span=span, found=None, cause=str(problem))
    return visit.render("overview.html", spans=SPANS, span=span, **_values(visit, found, span))


async def live_overview(visit: Visit) -> web.StreamResponse:
    """Stream the figures of the overview."""
    key, read = live_figures(visit, _reader(visit.site, _span(visit)))
    async with visit.site.feeds.follow(key, lambda: read) as values:
        return await stream(visit, values, str)


def live_figures(visit: Visit, figures: Read) -> tuple[Hashable, Read]:
    """Return a key, and the function that reads the figures as HTML.

    One read serves all browsers with this key, so the HTML has no data of the user.
    """
    span = _span(visit)
    shared = replace(visit, session=None)
    template = visit.site.environment.get_template("overview_figures.html")

    async def read() -> str:
        return template.render(_values(visit, await figures(), span), visit=shared, span=span)

    return ("overview", span, visit.zone.key, visit.client_id, visit.allows("operator")), read


def _span(visit: Visit) -> int:
    return span_of(visit.query.get("minutes"))


def _reader(site: Site, span: int) -> Read:
    async def read() -> Any:
        return await site.services.request(READ_OVERVIEW, to_json({"minutes": span}), _FOR_ALL)

    return read


def _values(visit: Visit, found: Any, span: int) -> dict[str, Any]:
    attempts, durations = attempt_charts(found["minutes"], found["at"], span, visit.zone)
    return {
        "found": found,
        "attempts": attempts,
        "durations": durations,
        "can_schedule": visit.allows("operator"),
    }
