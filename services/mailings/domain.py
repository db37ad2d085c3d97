"""Recipients, message ids and states of postings: pure functions, no IO."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import unquote_plus
from uuid import UUID, uuid5

from pydantic import TypeAdapter

from shared.contracts.callback import ClientId
from shared.contracts.clients import time_zones
from shared.contracts.message_facts import ReasonCode
from shared.contracts.posting_requests import MessageState, PostingState
from shared.registry import CHANNELS, Channel

_NAMESPACE: Final = UUID("a3f0a1a7-96b8-4d0d-9a40-0f3a4b9d5c11")
DEFAULT_PAGE_SIZE: Final = 500
MAX_PAGE_SIZE: Final = 100_000
# Characters of a reason.
MAX_REASON: Final = 500
# Characters of a value in a reason.
_MAX_QUOTED: Final = 40
_MAX_ID: Final = 1 << 63

_USER_ID: Final = TypeAdapter(ClientId).validator
_ADDRESS: Final = {
    channel.name: TypeAdapter(
        Annotated[str, channel.contract.model_fields[channel.address]]
    ).validator
    for channel in CHANNELS.values()
}
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


class InvalidPostingError(Exception):
    """The posting cannot be expanded. The text is the reason."""


def posting_id(logical_id: str) -> UUID:
    """Return the id of the posting with this logical id."""
    try:
        return UUID(logical_id)
    except ValueError:
        return uuid5(_NAMESPACE, logical_id)


def posting_id_of_key(client_id: str | None, idempotency_key: str) -> UUID:
    """Return the id of the posting that a request with an idempotency key creates."""
    return uuid5(_NAMESPACE, f"{client_id or ''}\0key:{idempotency_key}")


def posting_id_of_request(client_id: str | None, message_id: str) -> UUID:
    """Return the id of the posting that a request without an idempotency key creates."""
    return uuid5(_NAMESPACE, f"{client_id or ''}\0request:{message_id}")


def message_id(posting: UUID, channel: str, user_id: str) -> UUID:
    """Return the id of the message to a user, which is the same every time."""
    return uuid5(posting, f"{channel} {user_id}")


@dataclass(frozen=True, slots=True)
class PageUrls:
    """The URLs of a user list: `page_number` and `page_size` are set, the rest is unchanged."""

    prefix: str  # up to the page number
    suffix: str
    first: int
    size: int

    @classmethod
    def of(cls, url: str) -> "PageUrls":
        """Return the URLs of a user list.

        Raises:
            InvalidPostingError: page_number or page_size is not a number, or is out of range.
        """
        path, _, query = url.partition("#")[0].partition("?")
        paging: dict[str, str] = {}
        others = []
        for part in filter(None, query.split("&")):
            name, _, value = part.partition("=")
            name = unquote_plus(name)
            if name in ("page_number", "page_size"):
                paging.setdefault(name, value)
            else:
                others.append(part)
        size = _number("page_size", paging.get("page_size"), DEFAULT_PAGE_SIZE)
        if not 1 <= size <= MAX_PAGE_SIZE:
            raise InvalidPostingError(f"receivers: page_size must be from 1 to {MAX_PAGE_SIZE}")
        first = _number("page_number", paging.get("page_number"), 1)
        prefix = "&".join([*others, "page_number="])
        return cls(f"{path}?{prefix}", f"&page_size={size}", first, size)

    def at(self, index: int) -> str:
        """Return the URL of a page, counted from 0."""
        return f"{self.prefix}{self.first + index}{self.suffix}"


def _number(name: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise InvalidPostingError(f"receivers: {name} must be a number")
    return int(text)


class Page(NamedTuple):
    """A page of recipients, and where the next one is, if any."""

    items: list[Any]
    next_page: str | None
    total: int = 0  # users on all pages, if the response has `count`


def author_of(value: Any) -> str | None:
    """Return the URL of the user who is the author of an object, such as a review."""
    author = value.get("author") if isinstance(value, dict) and "results" not in value else None
    return author if isinstance(author, str) else None


def parse_page(value: Any, *, size: int, earlier: int, by_number: str) -> Page:
    """Return the page in a response: a list, `{"results": [...]}`, or a single user.

    `next` or `count` of an object decide whether the list continues. Otherwise it ends at a page
    that is shorter than `size`.

    Args:
        value: the response.
        size: users on a full page.
        earlier: users on the earlier pages.
        by_number: the URL of the page with the next number.

    Raises:
        InvalidPostingError: the response has another form, more than MAX_PAGE_SIZE items, or
            contradicts itself.
    """
    items, count, link = value, None, None
    if isinstance(value, dict):
        if "results" not in value:
            return Page([value], None)
        items, count, link = value["results"], value.get("count"), value.get("next")
    if not isinstance(items, list):
        raise InvalidPostingError('the response is not a list, not {"results": […]} and not a user')
    if len(items) > MAX_PAGE_SIZE:  # a page of 4 MB can have two million, which take five seconds
        raise InvalidPostingError(f"the page has more than {MAX_PAGE_SIZE} items")
    if link is not None and not isinstance(link, str):
        raise InvalidPostingError("next is not a URL")
    missing = count - earlier - len(items) if type(count) is int else 0
    if isinstance(value, dict) and "next" in value:
        next_page = link or None
    elif type(count) is int:
        next_page = by_number if missing > 0 and items else None
    else:
        next_page = by_number if len(items) >= size else None
    if missing > 0 and next_page is None:
        raise InvalidPostingError(f"the list ends before its count of {count} users")
    return Page(items, next_page, count if type(count) is int else 0)


@dataclass(frozen=True, slots=True)
class Skip:
    """The reason why a recipient gets no message."""

    code: ReasonCode
    reason: str


@dataclass(frozen=True, slots=True)
class Recipient:
    """An item of a page.

    id: the user's id, or the position of an invalid item.
    user: the fields of the user.
    error: why the item is invalid.
    operator_code: of a client of the directory.
    """

    id: str
    user: Mapping[str, Any]
    error: str | None
    operator_code: str | None = None

    @classmethod
    def of(cls, item: Any, position: str) -> "Recipient":
        """Return the recipient at a position such as `page 3, item 7`."""
        if not isinstance(item, dict):
            return cls(position, {}, "not a user: not a JSON object")
        id_ = item.get("id")
        if isinstance(id_, int) and not isinstance(id_, bool) and abs(id_) < _MAX_ID:
            return cls(str(id_), item, None)
        if id_ is None:
            return cls(position, {}, "not a user: id: Field required")
        if isinstance(id_, str) and _USER_ID.isinstance_python(id_):
            return cls(id_, item, None)
        return cls(
            position, {}, "not a user: id: must be a text of 1 to 255 characters, or a number"
        )


def address(user: Mapping[str, Any], channel: Channel, kind: str, *, required: bool) -> str | Skip:
    """Return a user's address on a channel, or the reason why the user gets no message.

    Users cannot switch off a required message, and get it before they are active.
    """
    refusal = None if required else _refusal(user, channel, kind)
    if refusal is not None:
        return refusal
    found = channel.normalize(user.get(channel.user_address))
    if not found:
        return Skip(ReasonCode.NO_ADDRESS, f"no {channel.address_label}")
    valid = _ADDRESS[channel.name].isinstance_python(found)
    return found if valid else Skip(ReasonCode.INVALID_ADDRESS, f"invalid {channel.address_label}")


def _refusal(user: Mapping[str, Any], channel: Channel, kind: str) -> Skip | None:
    """Return why a user gets no message that is not required. Only `true` is consent."""
    if user.get("is_active", True) is not True:
        return Skip(ReasonCode.NOT_ENABLED, "inactive")
    if user.get(channel.opt_in) is not True:
        return Skip(ReasonCode.NOT_ENABLED, f"{channel.name} not enabled")
    kinds = user.get("notifications", {})
    if not isinstance(kinds, dict):
        return Skip(ReasonCode.INVALID_RECIPIENT, "invalid notifications: not a JSON object")
    if kinds.get(kind, True) is not True:
        return Skip(ReasonCode.NOT_ENABLED, f"{kind} not enabled")
    zone = user.get("timezone")
    if zone is not None and not (isinstance(zone, str) and zone in time_zones()):
        shown = repr(zone[:_MAX_QUOTED]) if isinstance(zone, str) else "that is not a text"
        return Skip(ReasonCode.INVALID_RECIPIENT, f"unknown time zone {shown}")
    return None


def storable(reason: str) -> str:
    """Return a reason without control characters, and not longer than MAX_REASON."""
    return "".join(c if c.isprintable() else " " for c in reason)[:MAX_REASON]


def posting_state(ended: str | None, *, started: bool, unsettled: int) -> PostingState:
    """Return the state of a posting; `unsettled` is the number of messages that are not settled."""
    match ended:
        case None:
            return PostingState.EXPANDING if started else PostingState.ACCEPTED
        case "expanded":
            return PostingState.SENDING if unsettled else PostingState.DONE
        case _:
            return PostingState(ended)


_MAY_BECOME_SENT: Final = (MessageState.FAILED, MessageState.EXPIRED, MessageState.CANCELLED)


def may_change(status: MessageState, new: MessageState) -> bool:
    """Return whether a fact may change a message's status.

    A redriven dead letter may be sent. So may a message whose mailing ended at the same time.
    """
    if status is MessageState.CREATED:
        return True
    return new is MessageState.SENT and status in _MAY_BECOME_SENT
