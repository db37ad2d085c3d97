"""The live tail: what the journal records, as it records it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.console.fields import given
from services.console.live import stream
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Site, Visit
from shared.amqp.rpc import RequestContext
from shared.contracts.journal import EntryKind
from shared.contracts.journal_reads import TAIL

# Entries of one read. At a higher rate, the tail leaves some out.
PAGE_SIZE: Final = 100
# Positions before the latest one that the page looks back at.
LOOK_BACK: Final = 200
OUTCOMES: Final = (
    ("", "all"),
    ("delivered", "delivered"),
    ("failed", "failed"),
    ("dead", "dead"),
    ("dispatch_failed", "dispatch failed"),
)
KINDS: Final = (("", "all"), *((kind.value, kind.value.replace("_", " ")) for kind in EntryKind))
_FOR_ALL: Final = RequestContext(None, operator=True)


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/tail", Role.VIEWER, "Live tail", tail, section="Watch"),
        Page("GET", "/live/tail", Role.VIEWER, "Live tail", live_tail, live=True),
    )


async def tail(visit: Visit) -> web.StreamResponse:
    """Return the latest entries that match; the stream adds those that follow."""
    selected = _filter(visit)
    position = (await _read(visit.site, {}))["seq"]
    found = await _read(visit.site, selected | {"after": max(position - LOOK_BACK, 0)})
    return visit.render(
        "tail.html",
        entries=list(reversed(found["items"])),
        live=visit.url("/live/tail", **given(visit.query, "target", "outcome", "kind")),
        outcomes=OUTCOMES,
        kinds=KINDS,
    )


async def live_tail(visit: Visit) -> web.StreamResponse:
    """Stream new entries that match."""
    selected = _filter(visit)
    template = visit.site.environment.get_template("tail_rows.html")

    def render(entries: Any) -> str:
        return template.render(visit=visit, entries=list(reversed(entries))) if entries else ""

    key = "tail", to_json(selected)
    async with visit.site.feeds.follow(key, lambda: _reader(visit.site, selected)) as values:
        return await stream(visit, values, render)


def _reader(site: Site, selected: Mapping[str, Any]) -> Callable[[], Awaitable[Any]]:
    """Return a function that reads the entries since it was called before."""
    position: int | None = None

    async def read() -> Any:
        nonlocal position
        if position is None:
            position = (await _read(site, {}))["seq"]
            return []
        found = await _read(site, {**selected, "after": position, "limit": PAGE_SIZE})
        position = found["seq"]
        if len(found["items"]) == PAGE_SIZE:  # more than anybody can read: go on with the latest
            position = (await _read(site, {}))["seq"]
        return found["items"]

    return read


async def _read(site: Site, body: Mapping[str, Any]) -> Any:
    return await site.services.request(TAIL, to_json(body), _FOR_ALL)


def _filter(visit: Visit) -> dict[str, Any]:
    selected: dict[str, Any] = given(visit.query, "target", "outcome")
    if kind := visit.query.get("kind"):
        selected["kinds"] = [kind]
    return selected if visit.client_id is None else selected | {"client_id": visit.client_id}
