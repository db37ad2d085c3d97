"""The search of attempts."""

from typing import Any, Final

from aiohttp import web

from services.console.forms import FormReader, input_time
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Visit
from shared.contracts.journal_reads import LIST_ATTEMPTS

PAGE_SIZE: Final = 50
STATUSES: Final = (
    ("", "all"),
    ("failed", "every failure"),
    ("delivered", "delivered"),
    ("dead", "dead"),
    ("dispatch_failed", "dispatch failed"),
)


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (Page("GET", "/attempts", Role.VIEWER, "Attempts", attempts, section="Watch"),)


async def attempts(visit: Visit) -> web.StreamResponse:
    """Return the attempts that match, the latest first."""
    zone, query = visit.zone, visit.query
    form = FormReader(query, zone)
    body = _search(form)
    form.check()
    if visit.client_id is not None:
        body["client_id"] = visit.client_id
    found = await visit.call(LIST_ATTEMPTS, body | {"limit": PAGE_SIZE})
    return visit.render(
        "attempts.html",
        attempts=found["items"],
        next_cursor=found["next_cursor"],
        statuses=STATUSES,
        since=input_time(query.get("since"), zone),
        until=input_time(query.get("until"), zone),
        # What a replay of these attempts would select.
        selection=form.given("target", "reason", "since", "until")
        | {"status": "delivered" if query.get("status") == "delivered" else "failed"},
    )


def _search(form: FormReader) -> dict[str, Any]:
    body: dict[str, Any] = form.given(
        "target", "status", "reason", "trace_id", "group_key", "event_key", "cursor"
    )
    if code := form.text("code"):
        body["status"] = code
    return body | form.times("since", "until")
