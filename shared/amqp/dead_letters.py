"""Dead letters: parsing, filtering and showing them without secrets, and facts. Pure, no IO.

Ringback gives each dead letter a unique id. A letter that RabbitMQ itself has dead-lettered, or an
older version, has none. Its id is then derived from what it contains, so identical letters of the
same time share one.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, TypeGuard

from yarl import URL

from shared.amqp.codec import Properties
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.message import Message, parse_delivery
from shared.clock import rfc3339
from shared.contracts import headers
from shared.contracts.journal_facts import LetterDead, LetterDiscarded, LetterRedriven
from shared.errors import ContractViolationError

# The headers that a message gets after its first attempt. A redriven message starts without them.
RESET_HEADERS: Final = frozenset(
    {
        headers.ATTEMPT,
        headers.CHAIN,
        headers.STEP,
        headers.DEFERRALS,
        headers.FIRST_AT,
        headers.NOT_BEFORE,
        headers.REASON,
        headers.DIED_AT,
        headers.LETTER,
    }
)
HIDDEN: Final = "******"
# Levels of nesting that are shown. Python's JSON encoder stops at 300.
MAX_DEPTH: Final = 100
# Characters of a host name in DNS.
MAX_HOST_LENGTH: Final = 253
# Characters of a scheme, such as https.
MAX_SCHEME_LENGTH: Final = 20
# Characters of an id in a fact.
MAX_ID_LENGTH: Final = 255
# Milliseconds of the largest time that is shown, in the year 6429.
_MAX_TIME: Final = 1 << 47
_SECRET: Final = re.compile(
    r"secret|passw|token|ticket|authoriz|cookie|credential|signature|api.?key|private",
    re.IGNORECASE,
)
# A service ticket. The name of its header is a setting.
_JWT: Final = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")
_LETTER_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message of a dead-letter queue.

    own_id: the id that Ringback gave to the letter, None if it has none.
    died_at: epoch seconds, None if unknown.
    attempts: None if Ringback made no attempt.
    target: scheme, host and port of a callback.
    body: parsed JSON, None if it is not JSON.
    """

    message: Message
    reason: str
    died_at: float | None
    attempts: int | None
    target: str | None
    body: Any
    own_id: str | None = None

    @property
    def id(self) -> str:
        """The logical id: the one in the body, or else that of the message."""
        own = self.body.get("id") if isinstance(self.body, dict) else None
        return own if _is_plain(own) else self.message.id

    @property
    def letter_id(self) -> str:
        """The id of the dead letter itself. Another one follows if the message dies again."""
        if self.own_id:
            return self.own_id
        known = (self.message.id, self.message.properties.message_id, self.died_at, self.reason)
        return sha256(repr(known).encode() + self.message.body).hexdigest()[:32]

    @property
    def client_id(self) -> str | None:
        """The client id in the body, if any."""
        return _client_id(self.body)

    def summary(self) -> dict[str, Any]:
        """Return the fields for a list."""
        return {
            "id": self.id,
            "died_at": None if self.died_at is None else rfc3339(self.died_at),
            "attempts": self.attempts,
            "target": self.target,
            "reason": self.reason,
        }

    def details(self) -> dict[str, Any]:
        """Return all fields, with secrets hidden. A body that is not JSON is not shown."""
        properties = self.message.properties
        present = {
            name: value
            for name in Properties.__slots__
            if name != "headers" and (value := getattr(properties, name)) is not None
        }
        size = len(self.message.body)
        hidden = f"{size} bytes that are not JSON: not shown, because they may contain a secret"
        return self.summary() | {
            "properties": present,
            "headers": redacted(dict(properties.headers or {})),
            "body": hidden if self.body is None else redacted(self.body),
        }


def parse_dead_letter(delivery: Delivery) -> DeadLetter:
    """Return the dead letter in a delivery, even if it is malformed."""
    try:
        message = parse_delivery(delivery, history=True)
    except ContractViolationError as error:
        malformed = Message("", Properties(), delivery.body)
        return DeadLetter(malformed, str(error), None, None, None, None)
    values = message.properties.headers or {}
    died_at, reason = _from_broker(values)
    own_time = values.get(headers.DIED_AT)
    if isinstance(own_time, int) and 0 <= own_time <= _MAX_TIME:
        died_at = own_time / 1000
    attempts = values.get(headers.ATTEMPT)
    body = _json(message.body)
    return DeadLetter(
        message,
        str(values.get(headers.REASON) or reason),
        died_at,
        attempts if isinstance(attempts, int) else None,
        _target(body),
        body,
        _own_id(values),
    )


def letter_dead(
    queue: str, message: Message, *, letter_id: str, reason: str, at: float
) -> LetterDead:
    """Return the fact that a message of a work queue was dead-lettered at this time."""
    body = _json(message.body)
    return LetterDead(
        fact_id=letter_id,
        at=datetime.fromtimestamp(at, UTC),
        queue=queue,
        letter_id=letter_id,
        logical_id=message.id,
        reason=reason,
        target=_target(body),
        client_id=_client_id(body),
        trace_id=message.trace_id,
    )


def letter_moved(  # noqa: PLR0913 - what is known of the move
    fact: type[LetterRedriven | LetterDiscarded],
    queue: str,
    letter: DeadLetter,
    *,
    at: float,
    actor: str | None,
    job: str | None = None,
) -> LetterRedriven | LetterDiscarded:
    """Return the fact that a letter has left the dead-letter queue of a work queue."""
    return fact(
        fact_id=f"{letter.letter_id}/moved",
        at=datetime.fromtimestamp(at, UTC),
        queue=queue,
        letter_id=letter.letter_id,
        logical_id=letter.id,
        actor=actor,
        job=job,
    )


def _own_id(values: Mapping[str, Any]) -> str | None:
    """Return the id that Ringback gave to the letter. RabbitMQ keeps an id that is a copy."""
    own = values.get(headers.LETTER)
    known = isinstance(own, str) and _LETTER_ID.fullmatch(own) and "x-death" not in values
    return str(own) if known else None


def _from_broker(values: Mapping[str, Any]) -> tuple[float | None, str]:
    """Return when and why the broker dead-lettered a message, from the header `x-death`."""
    deaths = values.get("x-death")  # the newest first
    if not isinstance(deaths, list) or not deaths or not isinstance(deaths[0], dict):
        return None, "unknown: the message has no reason"
    at, reason = deaths[0].get("time"), deaths[0].get("reason")
    causes = {"delivery_limit": ": its workers died, or returned it, too often"}
    return (
        at.timestamp() if isinstance(at, datetime) else None,  # a sender can set any value
        f"dead-lettered by RabbitMQ, {reason}{causes.get(str(reason), '')}",
    )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _client_id(body: Any) -> str | None:
    client_id = body.get("client_id") if isinstance(body, dict) else None
    return client_id if _is_plain(client_id) else None


def _is_plain(value: Any) -> TypeGuard[str]:
    """Return whether a value is a text that facts and PostgreSQL can hold.

    JSON also has NUL and lone surrogates, and the message may be dead-lettered for them.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_LENGTH:
        return False
    return not any(each == "\0" or "\ud800" <= each <= "\udfff" for each in value)


def _target(body: Any) -> str | None:
    url = body.get("target_url") if isinstance(body, dict) else None
    return origin(url) if isinstance(url, str) else None


def origin(url: str) -> str | None:
    """Return scheme, host and port, always with the port: the rest of a URL can contain a token."""
    try:
        parsed = URL(url)
        host, port = parsed.raw_host, parsed.port
    except ValueError:
        return None
    if not host or not port or len(host) > MAX_HOST_LENGTH:
        return None
    if len(parsed.scheme) > MAX_SCHEME_LENGTH or not host.isprintable():
        return None
    return f"{parsed.scheme}://{f'[{host}]' if ':' in host else host.lower()}:{port}"


def redacted(value: Any, name: str = "", *, depth: int = 0) -> Any:
    """Return the value with secrets hidden: by their names, tickets, and the query values of URLs.

    Values below MAX_DEPTH levels are hidden, too.
    """
    if depth > MAX_DEPTH:
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(key): redacted(item, str(key), depth=depth + 1) for key, item in value.items()}
    if _SECRET.search(name) and name != "secret_ref":
        return HIDDEN
    if isinstance(value, list | tuple):
        return [redacted(item, name, depth=depth + 1) for item in value]
    if isinstance(value, str):
        return _text(value)
    return value if isinstance(value, int | float | bool | None) else str(value)


def _text(value: str) -> str:
    if _JWT.fullmatch(value):
        return HIDDEN
    return _url(value) if "://" in value else value


def _url(text: str) -> str:
    """Return a URL without its user, password and query values."""
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
    """Return whether the letter passes the filter. An empty filter passes all."""
    if ids and letter.id not in ids and letter.message.id not in ids:
        return False
    return reason is None or reason.casefold() in letter.reason.casefold()


def redrive_properties(letter: DeadLetter, *, message_id: str) -> Properties:
    """Return properties for a redriven copy: the sender's, with the same logical id."""
    properties = letter.message.copy_properties({}, message_id=message_id)
    kept = {k: v for k, v in (properties.headers or {}).items() if k not in RESET_HEADERS}
    if not letter.message.id:
        del kept[headers.ID]
    return replace(properties, headers=kept)
