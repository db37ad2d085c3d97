"""The audit log: who did what, and when."""

from typing import Final

from aiohttp import web

from services.console.forms import FormReader, input_time
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Visit
from shared.contracts.journal_reads import LIST_AUDIT

PAGE_SIZE: Final = 50


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (Page("GET", "/audit", Role.VIEWER, "Audit log", audit, section="Watch"),)


async def audit(visit: Visit) -> web.StreamResponse:
    """Return the actions that match, the latest first."""
    query = visit.query
    form = FormReader(query, visit.zone)
    body = form.given("actor", "action", "cursor") | form.times("since", "until")
    form.check()
    if visit.client_id is not None:
        body["client_id"] = visit.client_id
    found = await visit.call(LIST_AUDIT, body | {"limit": PAGE_SIZE})
    return visit.render(
        "audit.html",
        entries=found["items"],
        next_cursor=found["next_cursor"],
        since=input_time(query.get("since"), visit.zone),
        until=input_time(query.get("until"), visit.zone),
    )
