"""The live tail: what the journal records, as it records it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.console.forms import FormReader
from services.console.live import stream
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Site, Visit
from shared.amqp.rpc import RequestContext
from shared.contracts.journal import EntryKind
from shared.contracts.journal_reads import TAIL

# Entries of one read: more than anybody can read in two seconds.
PAGE_SIZE: Final = 100
# Entries that the tail may be behind. Beyond that, it skips to the latest and shows how many.
MAX_BEHIND: Final = 100
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
Read = Callable[[Mapping[str, Any]], Awaitable[Any]]
_FOR_ALL: Final = RequestContext(None, operator=True)


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/tail", Role.VIEWER, "Live tail", tail, section="Watch"),
        Page("GET", "/live/tail", Role.VIEWER, "Live tail", live_tail, live=True),
    )


@dataclass(frozen=True, slots=True)
class News:
    """Entries that match, the oldest first, and the number of skipped entries.

    left_out: entries that were recorded after these and skipped, whether they match or not.
    before: how many entries were shown or left out before these.
    """

    entries: Sequence[Mapping[str, Any]]
    left_out: int
    before: int = 0

    def __bool__(self) -> bool:
        """Return whether there is something to show."""
        return bool(self.entries or self.left_out)

    @property
    def end(self) -> int:
        """Return how many entries were shown or left out, including these."""
        return self.before + len(self.entries) + self.left_out


class Received:
    """What one browser has received. A slow browser misses some news."""

    def __init__(self) -> None:
        self._end: int | None = None

    def missed_before(self, news: News) -> int:
        """Return how many entries it has missed before `news`, which it receives next."""
        missed = 0 if self._end is None else news.before - self._end
        self._end = news.end
        return missed


async def tail(visit: Visit) -> web.StreamResponse:
    """Return the latest entries that match; the stream adds those that follow."""
    selected, form = _filter(visit), FormReader(visit.query, visit.zone)
    read = _reads(visit.site)
    position = (await read({}))["seq"]
    found = await read(selected | {"after": max(position - LOOK_BACK, 0)})
    return visit.render(
        "tail.html",
        entries=list(reversed(found["items"])),
        left_out=0,
        missed=0,
        live=visit.url("/live/tail", **form.given("target", "outcome", "kind")),
        outcomes=OUTCOMES,
        kinds=KINDS,
    )


async def live_tail(visit: Visit) -> web.StreamResponse:
    """Stream new entries that match."""
    selected, received = _filter(visit), Received()
    template = visit.site.environment.get_template("tail_rows.html")

    def render(news: News) -> str:
        missed = received.missed_before(news)
        if not (news or missed):
            return ""
        entries = list(reversed(news.entries))
        return template.render(visit=visit, entries=entries, left_out=news.left_out, missed=missed)

    key = "tail", to_json(selected)
    read = _reads(visit.site)
    async with visit.site.feeds.follow(key, lambda: reader(read, selected)) as values:
        return await stream(visit, values, render)


def reader(read: Read, selected: Mapping[str, Any]) -> Callable[[], Awaitable[News]]:
    """Return a function that returns what was recorded since its previous call."""
    position: int | None = None
    end = 0

    async def news() -> News:
        nonlocal position, end
        if position is None:
            position = (await read({}))["seq"]
            return News((), 0)
        found = await read({**selected, "after": position, "limit": PAGE_SIZE})
        behind = (await read({}))["seq"] - found["seq"]
        left_out = behind if behind > MAX_BEHIND else 0
        position = found["seq"] + left_out
        read_now = News(found["items"], left_out, before=end)
        end = read_now.end
        return read_now

    return news


def _reads(site: Site) -> Read:
    async def read(body: Mapping[str, Any]) -> Any:
        return await site.services.request(TAIL, to_json(body), _FOR_ALL)

    return read


def _filter(visit: Visit) -> dict[str, Any]:
    form = FormReader(visit.query, visit.zone)
    selected: dict[str, Any] = form.given("target", "outcome")
    if kind := form.text("kind"):
        selected["kinds"] = [kind]
    return selected if visit.client_id is None else selected | {"client_id": visit.client_id}
