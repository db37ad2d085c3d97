"""Who gets a message, under which id, and what becomes of it: pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import unquote_plus
from uuid import UUID, uuid5
from zoneinfo import available_timezones

from pydantic import TypeAdapter

from shared.contracts.callback import ClientId
from shared.contracts.posting_requests import MessageState, PostingState
from shared.registry import CHANNELS, Channel

_NAMESPACE: Final = UUID("a3f0a1a7-96b8-4d0d-9a40-0f3a4b9d5c11")
DEFAULT_PAGE_SIZE: Final = 500
LARGEST_PAGE_SIZE: Final = 100_000
# Characters of a reason.
LONGEST_REASON: Final = 500
_QUOTED: Final = 40
_LARGEST_ID: Final = 1 << 63

_USER_ID: Final = TypeAdapter(ClientId).validator
_ADDRESS: Final = {
    channel.name: TypeAdapter(
        Annotated[str, channel.contract.model_fields[channel.address]]
    ).validator
    for channel in CHANNELS.values()
}
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


class InvalidPostingError(Exception):
    """The posting can't be gone on with; the text says why."""


def posting_id(logical: str) -> UUID:
    """The id of the posting that comes under a logical id, however often it comes."""
    try:
        return UUID(logical)
    except ValueError:
        return uuid5(_NAMESPACE, logical)


def posting_of_key(client_id: str | None, idempotency_key: str) -> UUID:
    """The posting that a request with an idempotency key creates."""
    return uuid5(_NAMESPACE, f"{client_id or ''}\0key:{idempotency_key}")


def message_id(posting: UUID, channel: str, user_id: str) -> UUID:
    """The id of the message to a user, the same whenever it is worked out anew."""
    return uuid5(posting, f"{channel} {user_id}")


@dataclass(frozen=True, slots=True)
class PageUrls:
    """The URLs of a list's pages: `page_number` and `page_size` set, all else as it was."""

    before: str  # up to the page's number
    after: str
    first: int
    size: int

    @classmethod
    def of(cls, url: str) -> "PageUrls":
        """Those of a list of receivers.

        Raises:
            InvalidPostingError: its page_number or page_size is no number, or too large.
        """
        path, _, query = url.partition("#")[0].partition("?")
        given: dict[str, str] = {}
        others = []
        for part in filter(None, query.split("&")):
            name, _, value = part.partition("=")
            name = unquote_plus(name)
            if name in ("page_number", "page_size"):
                given.setdefault(name, value)
            else:
                others.append(part)
        size = _number("page_size", given.get("page_size"), DEFAULT_PAGE_SIZE)
        if not 1 <= size <= LARGEST_PAGE_SIZE:
            raise InvalidPostingError(f"receivers: page_size must be from 1 to {LARGEST_PAGE_SIZE}")
        first = _number("page_number", given.get("page_number"), 1)
        before = "&".join([*others, "page_number="])
        return cls(f"{path}?{before}", f"&page_size={size}", first, size)

    def at(self, index: int) -> str:
        """The URL of a page, counted from 0."""
        return f"{self.before}{self.first + index}{self.after}"


def _number(name: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise InvalidPostingError(f"receivers: {name} must be a number")
    return int(text)


class Page(NamedTuple):
    """A page of receivers; what is in it need not be users."""

    items: list[Any]
    last: bool


def page(value: Any, size: int) -> Page:
    """The page in an answer: a list, `{"results": [...]}`, or a user by himself.

    Raises:
        InvalidPostingError: it is none of these.
    """
    if isinstance(value, dict):
        if "results" not in value:
            return Page([value], last=True)
        value = value["results"]
    if not isinstance(value, list):
        raise InvalidPostingError('the answer is no list, no {"results": […]} and no user')
    return Page(value, last=len(value) < size)


@dataclass(frozen=True, slots=True)
class Skip:
    """Nothing is sent, and why."""

    why: str


def user_id(item: Any) -> str | Skip:
    """A user's id."""
    if not isinstance(item, dict):
        return Skip("not a user: no JSON object")
    given = item.get("id")
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) < _LARGEST_ID:
        return str(given)
    if given is None:
        return Skip("not a user: id: Field required")
    if isinstance(given, str) and _USER_ID.isinstance_python(given):
        return given
    return Skip("not a user: id: must be a text of 1 to 255 characters, or a number")


def address(user: Mapping[str, Any], channel: Channel, kind: str) -> str | Skip:
    """Where a user gets a message of this kind, if he wants it this way."""
    if user.get("is_active", True) is not True:
        return Skip("inactive")
    if user.get(channel.opt_in) is not True:
        return Skip(f"{channel.name} not wanted")
    kinds = user.get("notifications")
    if isinstance(kinds, dict) and kinds.get(kind) is False:
        return Skip(f"{kind} not wanted")
    zone = user.get("timezone")
    if zone is not None and not (isinstance(zone, str) and zone in _time_zones()):
        shown = repr(zone[:_QUOTED]) if isinstance(zone, str) else "that is no text"
        return Skip(f"unknown time zone {shown}")
    given = channel.normalize(user.get(channel.user_address))
    if not given:
        return Skip(f"no {channel.address_label}")
    valid = _ADDRESS[channel.name].isinstance_python(given)
    return given if valid else Skip(f"wrong {channel.address_label}")


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def stored(why: str) -> str:
    """A reason as PostgreSQL and people take it."""
    return "".join(c if c.isprintable() else " " for c in why)[:LONGEST_REASON]


def state(ended: str | None, *, begun: bool, open_messages: int) -> PostingState:
    """How far a posting is."""
    match ended:
        case None:
            return PostingState.EXPANDING if begun else PostingState.ACCEPTED
        case "expanded":
            return PostingState.SENDING if open_messages else PostingState.DONE
        case _:
            return PostingState(ended)


def settled(before: MessageState, told: MessageState) -> bool:
    """Whether a message in that state changes by such a fact: a dead letter may still be sent."""
    if before is MessageState.CREATED:
        return True
    return told is MessageState.SENT and before in (MessageState.FAILED, MessageState.EXPIRED)
