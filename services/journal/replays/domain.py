"""From a kept request to the message that sends it again: pure functions, no IO."""

import re
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from json import dumps, loads
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import ValidationError

from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.contracts import headers
from shared.contracts.callback import SEND_CALLBACK, SendCallback
from shared.contracts.kept_requests import unpack
from shared.errors import RingbackError
from shared.http.guard import ForbiddenTargetError, parse_target
from shared.security.encryption import DecryptionError, SecretCipher
from shared.topology import CALLBACKS

# The issuer of Ringback's own tickets.
ISSUER: Final = "ringback"
REDACTED: Final = "******"
# Names of headers and of parameters in a URL whose values are secret.
_SECRET_NAME: Final = re.compile(
    r"auth|cookie|credential|key|passw|secret|session|sign|sig$|ticket|token", re.IGNORECASE
)


class NotReplayableError(RingbackError):
    """A kept request cannot be sent again. The text says why."""


# The header of tickets, and Ringback's ticket for the client.
Ticket = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept request, decrypted: the `webhook-id`, and the body of its message."""

    callback_id: str
    body: bytes


def opened(cipher: SecretCipher | None, sealed: bytes) -> Kept:
    """Return the content of a kept request.

    Raises:
        NotReplayableError: its key is not configured, or its bytes were changed.
    """
    if cipher is None:
        raise NotReplayableError("RINGBACK_SECRETS_KEY is not set, so it cannot be decrypted")
    try:
        return Kept(*unpack(cipher.decrypt(sealed)))
    except (DecryptionError, UnicodeDecodeError) as error:
        raise NotReplayableError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Replay:
    """A message that sends a callback again, and the target that it goes to."""

    message: OutgoingMessage
    target: str | None


def replay(  # noqa: PLR0913 - the parts of a replay
    kept: Kept,
    *,
    client_id: str,
    replay_id: str,
    reference: str = "",
    url: str | None = None,
    ticket: Ticket | None = None,
    traceparent: str | None = None,
) -> Replay:
    """Return the message that sends a kept request again, under the same id and without an owner.

    An expiry is dropped, because it was that of the first delivery. A pinned certificate is dropped
    with another URL, because it is that of the first server. Ringback's own ticket, which is valid
    for hours only, is replaced by `ticket`, unless the URL is another one. The chain is the same if
    the same replay publishes twice, so a consumer that still knows the first message drops the
    second one.

    Raises:
        NotReplayableError: the request is not a SendCallback, or another client's.
    """
    try:
        body = _changed(kept.body, client_id, url, ticket)
        command = SendCallback.model_validate_json(body)
        target = parse_target(command.target_url).origin
    except (ValueError, RecursionError, ForbiddenTargetError) as error:
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise NotReplayableError(f"it is not a valid SendCallback: {cause}") from None
    if (command.client_id or "") != client_id:
        raise NotReplayableError("it belongs to another client")
    own: dict[str, Any] = {
        headers.ID: kept.callback_id,
        headers.REPLAY: replay_id,
        headers.CHAIN: f"{replay_id}.{reference}" if reference else replay_id,
        headers.STEP: 1,
    }
    if traceparent is not None:
        own[headers.TRACEPARENT] = traceparent
    properties = Properties(
        content_type="application/json",
        type=SEND_CALLBACK,
        message_id=new_id(),
        delivery_mode=PERSISTENT,
        app_id=headers.APP_ID,
        headers=own,
    )
    return Replay(OutgoingMessage(CALLBACKS, properties, body), target)


def _changed(body: bytes, client_id: str, url: str | None, ticket: Ticket | None) -> bytes:
    request = loads(body)
    if not isinstance(request, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - as for JSON that is not valid
    changed = request.pop("expires_at", None) is not None
    if url is not None:
        request["target_url"] = url
        request.pop("fingerprint", None)
        changed = True
    elif ticket is not None and isinstance(given := request.get("headers"), dict):
        name, text = ticket
        outdated = [
            each
            for each, value in given.items()
            if each.lower() == name.lower() and is_own_ticket(value, client_id)
        ]
        request["headers"] = given | dict.fromkeys(outdated, text)
        changed = changed or bool(outdated)
    return dumps(request).encode() if changed else body


def is_own_ticket(value: Any, client_id: str) -> bool:
    """Return whether a ticket says that it is Ringback's for this client.

    Its signature is not checked: the client may have Ringback's ticket for itself in any case.
    """
    try:
        _, claims, _ = value.split(".")
        found = loads(urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return bool((found["iss"], found["aud"]) == (ISSUER, client_id))
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError):
        return False


def redacted(kept: Kept) -> dict[str, Any]:
    """Return a kept request for people: without secrets, tickets and tokens.

    Raises:
        NotReplayableError: it is not a JSON object.
    """
    try:
        request = loads(kept.body)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise NotReplayableError("it is not a JSON object")
    if request.get("hmac_secret") is not None:
        request["hmac_secret"] = REDACTED
    if isinstance(given := request.get("headers"), dict):
        request["headers"] = {name: _redacted_value(name, value) for name, value in given.items()}
    if isinstance(target := request.get("target_url"), str):
        request["target_url"] = _redacted_url(target)
    return request


def _redacted_value(name: str, value: Any) -> Any:
    return REDACTED if _SECRET_NAME.search(name) else value


def _redacted_url(url: str) -> str:
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if not any(_SECRET_NAME.search(name) for name, _ in query):
        return url
    shown = urlencode([(name, _redacted_value(name, value)) for name, value in query], safe="*")
    return parts._replace(query=shown).geturl()
