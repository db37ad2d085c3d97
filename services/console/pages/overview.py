"""The overview: the state of everything on one page."""

from aiohttp import web

from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Visit


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (Page("GET", "/", Role.VIEWER, "Overview", overview, section="Watch"),)


async def overview(visit: Visit) -> web.StreamResponse:
    """Return the overview."""
    return visit.render("overview.html")
