"""The search of attempts."""

from typing import Any, Final

from aiohttp import web

from services.console.fields import given, input_time, times
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
    found = await visit.call(LIST_ATTEMPTS, _search(visit) | {"limit": PAGE_SIZE})
    zone, query = visit.zone, visit.query
    return visit.render(
        "attempts.html",
        attempts=found["items"],
        next_cursor=found["next_cursor"],
        statuses=STATUSES,
        since=input_time(query.get("since"), zone),
        until=input_time(query.get("until"), zone),
        # What a replay of these attempts would select.
        selection=given(query, "target", "reason", "since", "until")
        | {"status": "delivered" if query.get("status") == "delivered" else "failed"},
    )


def _search(visit: Visit) -> dict[str, Any]:
    query = visit.query
    body: dict[str, Any] = given(
        query, "target", "status", "reason", "trace_id", "group_key", "event_key", "cursor"
    )
    if code := query.get("code", "").strip():
        body["status"] = code
    body |= times(query, visit.zone, "since", "until")
    return body if visit.client_id is None else body | {"client_id": visit.client_id}
