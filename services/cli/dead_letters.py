"""A dead letter as a person sees it: pure, no IO. Secrets are never shown."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from yarl import URL

from shared.amqp.codec import Properties
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.message import Message, parse_delivery
from shared.amqp.publisher import new_id
from shared.clock import rfc3339
from shared.contracts import headers
from shared.errors import ContractViolationError

# What a message takes on between its first try and its death; without it, it is as new.
RESET: Final = frozenset(
    {
        headers.ATTEMPT,
        headers.DEFERRALS,
        headers.FIRST_AT,
        headers.NOT_BEFORE,
        headers.REASON,
        headers.DIED_AT,
    }
)
HIDDEN: Final = "******"
_SECRET: Final = re.compile(
    r"secret|passw|token|authoriz|cookie|credential|signature|api.?key|private", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message of a dead queue.

    died_at: epoch seconds, None if nobody noted it. attempts: None if it was never tried by us.
    target: scheme, host and port of the callback, if it is one. body: as JSON, None if it is none.
    """

    message: Message
    reason: str
    died_at: float | None
    attempts: int | None
    target: str | None
    body: Any

    @property
    def id(self) -> str:
        """The logical id: the one in the body, else the message's."""
        own = self.body.get("id") if isinstance(self.body, dict) else None
        return own if isinstance(own, str) and own else self.message.id

    def line(self) -> dict[str, Any]:
        """What a list tells of it."""
        return {
            "id": self.id,
            "died_at": None if self.died_at is None else rfc3339(self.died_at),
            "attempts": self.attempts,
            "target": self.target,
            "reason": self.reason,
        }

    def everything(self) -> dict[str, Any]:
        """All there is to know of it, secrets hidden. A body that is no JSON is not shown."""
        properties = self.message.properties
        named = {
            name: value
            for name in Properties.__slots__
            if name != "headers" and (value := getattr(properties, name)) is not None
        }
        size = len(self.message.body)
        unread = f"{size} bytes that are not JSON, so not shown: they may hold a secret"
        return self.line() | {
            "properties": named,
            "headers": redacted(dict(properties.headers or {})),
            "body": unread if self.body is None else redacted(self.body),
        }


def read(delivery: Delivery) -> DeadLetter:
    """The letter in a delivery, whatever is wrong with it."""
    try:
        message = parse_delivery(delivery, history=True)
    except ContractViolationError as error:
        broken: Message = Message("", Properties(), delivery.body)
        return DeadLetter(broken, str(error), None, None, None, None)
    given = message.properties.headers or {}
    died_at, why = _by_broker(given)
    if isinstance(given.get(headers.DIED_AT), int):
        died_at = given[headers.DIED_AT] / 1000
    attempts = given.get(headers.ATTEMPT)
    body = _json(message.body)
    return DeadLetter(
        message,
        str(given.get(headers.REASON) or why),
        died_at,
        attempts if isinstance(attempts, int) else None,
        _origin(body),
        body,
    )


def _by_broker(given: Mapping[str, Any]) -> tuple[float | None, str]:
    """When and why the broker itself gave a message up, by its header `x-death`, newest first."""
    deaths = given.get("x-death")
    if not isinstance(deaths, list) or not deaths or not isinstance(deaths[0], dict):
        return None, "unknown: it carries no reason"
    at, reason = deaths[0].get("time"), deaths[0].get("reason")
    told = {"delivery_limit": ": its workers died, or let go of it, again and again"}
    return (
        at.timestamp() if at is not None else None,
        f"given up by RabbitMQ, {reason}{told.get(str(reason), '')}",
    )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _origin(body: Any) -> str | None:
    """Scheme, host and port; the rest of a URL may carry a token."""
    url = body.get("target_url") if isinstance(body, dict) else None
    try:
        return str(URL(url).origin()) if isinstance(url, str) else None
    except ValueError:
        return None


def redacted(value: Any, name: str = "") -> Any:
    """The value with everything hidden that is a secret by its name, or stands in a URL's query."""
    if isinstance(value, Mapping):
        return {str(key): redacted(item, str(key)) for key, item in value.items()}
    if _SECRET.search(name) and name != "secret_ref":
        return HIDDEN
    if isinstance(value, list | tuple):
        return [redacted(item, name) for item in value]
    if isinstance(value, str) and "://" in value:
        return _url(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _url(text: str) -> str:
    """A URL without its user, password and query values."""
    try:
        url = URL(text)
        if url.user or url.password:
            url = url.with_user(HIDDEN).with_password(None)
        if url.query:
            url = url.with_query(dict.fromkeys(url.query, HIDDEN))
    except ValueError:
        return HIDDEN
    return str(url)


def matches(letter: DeadLetter, *, ids: frozenset[str], reason: str | None) -> bool:
    """Whether the letter passes the filter; an empty one lets all pass."""
    if ids and letter.id not in ids and letter.message.id not in ids:
        return False
    return reason is None or reason.casefold() in letter.reason.casefold()


def revived(letter: DeadLetter) -> Properties:
    """Properties for a copy that starts anew: the sender's, and the same logical id."""
    properties = letter.message.copy_properties({}, message_id=new_id())
    kept = {k: v for k, v in (properties.headers or {}).items() if k not in RESET}
    if not letter.message.id:
        del kept[headers.ID]
    return replace(properties, headers=kept)
