"""Encoding, signing and the meaning of a response: pure functions, no IO."""

import binascii
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from json import JSONEncoder
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from multidict import CIMultiDict

from shared.contracts.callback import STANDARD_PREFIX, SendCallback, is_reserved
from shared.errors import ContractViolationError, PermanentError, TransientError
from shared.http.retry_after import RETRY_AFTER_STATUSES, parse_retry_after
from shared.resilience.retry import RetryPolicy, first_tier

# Statuses that count against the circuit breaker, except 429 with Retry-After. Any other response
# shows that the target works.
OVERLOADED: Final = frozenset({429, 502, 503, 504})

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

# The output is byte for byte that of json.dumps(payload, sort_keys=True). json.dumps would create a
# new encoder on each call.
_encode: Final = JSONEncoder(sort_keys=True, allow_nan=False).encode
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class SigningError(PermanentError):
    """The callback cannot be signed: its secret is malformed, or its name is not configured."""


class ResponseRejectedError(TransientError):
    """The receiver responded with a status that is neither 2xx nor 410."""

    def __init__(self, status: int, *, retry_after: float = 0.0) -> None:
        super().__init__(f"the receiver responded with {status}", retry_after=retry_after)
        self.status = status


class GoneError(PermanentError):
    """The receiver responded with 410."""

    def __init__(self) -> None:
        super().__init__("the receiver responded with 410: gone for good")
        self.status = int(HTTPStatus.GONE)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret as two keyed HMACs, which are copied for each signature."""

    plain: hmac.HMAC
    standard: hmac.HMAC


@lru_cache(maxsize=4096)
def signing_key(secret: str) -> SigningKey:
    """Return the key for a secret: base64 after `whsec_` (Standard Webhooks), otherwise UTF-8.

    Raises:
        SigningError: the text after `whsec_` is empty or not base64.
    """
    raw = secret.encode()
    standard = raw
    if secret.startswith(STANDARD_PREFIX):
        try:
            standard = b64decode(secret.removeprefix(STANDARD_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise SigningError("the secret is not base64 after whsec_") from None
        if not standard:  # anyone can sign with an empty key
            raise SigningError("the secret is empty after whsec_")
    return SigningKey(hmac.new(raw, digestmod="sha256"), hmac.new(standard, digestmod="sha256"))


def encode_json(payload: Any) -> bytes:
    """Return the payload as the JSON body that is signed and sent.

    Raises:
        ContractViolationError: it contains a number that is not valid JSON, or a NUL character.
    """
    try:
        text = _encode(payload)
    except (ValueError, RecursionError) as error:
        raise ContractViolationError(f"payload: {error}") from None
    if "\\u0000" in text and _NUL.search(text):
        raise ContractViolationError("payload: a text contains the character NUL")
    return text.encode()


def encode_form(payload: Mapping[str, Any]) -> str:
    """Return the payload as a form or a query, sorted by name; values that are not text are JSON.

    Raises:
        ContractViolationError: as in `encode_json`, or a text is not valid Unicode.
    """
    encode_json(payload)
    pairs = [(k, v if isinstance(v, str) else _encode(v)) for k, v in sorted(payload.items())]
    try:
        return urlencode(pairs)
    except UnicodeEncodeError as error:
        raise ContractViolationError(f"payload: {error}") from None


def with_query(url: str, query: str) -> str:
    """Return the URL with `query` added to its own."""
    parts = urlsplit(url)
    joined = "&".join(part for part in (parts.query, query) if part)
    return parts._replace(query=joined).geturl()


def signed_headers(
    callback_id: str,
    body: bytes,
    keys: Sequence[SigningKey],
    *,
    timestamp: int,
    content_type: str | None = JSON,
) -> CIMultiDict[str]:
    """Return the headers with both signatures; without a key they contain no signature.

    X-Signature: hex HMAC-SHA256 of the body with the first key. webhook-signature: Standard
    Webhooks, `v1,` and base64 HMAC-SHA256 over `id.timestamp.body`, for each key.
    """
    headers: CIMultiDict[str] = CIMultiDict()
    prefix = f"{callback_id}.{timestamp}.".encode()
    standard = []
    if keys:
        digest = keys[0].plain.copy()
        digest.update(body)
        headers["X-Signature"] = digest.hexdigest()
    for key in keys:
        digest = key.standard.copy()
        digest.update(prefix)
        digest.update(body)
        standard.append("v1," + b64encode(digest.digest()).decode())
    if content_type is not None:
        headers["Content-Type"] = content_type
    headers["webhook-id"] = callback_id
    headers["webhook-timestamp"] = str(timestamp)
    if standard:
        headers["webhook-signature"] = " ".join(standard)
    return headers


def allowed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the command's headers without the reserved ones."""
    return {name: value for name, value in headers.items() if not is_reserved(name)}


def requested_pause(status: int, retry_after: str | None, *, now: float) -> float:
    """Return the seconds for which a receiver that works refuses requests, or 0."""
    if status != HTTPStatus.TOO_MANY_REQUESTS:
        return 0.0
    return parse_retry_after(retry_after, now=now)


def shows_alive(status: int, pause: float) -> bool:
    """Return whether a response with this status shows that the target works.

    pause: the result of `requested_pause`.
    """
    return pause > 0 or status not in OVERLOADED


def check_response(status: int, retry_after: str | None, *, now: float) -> None:
    """Check that the receiver accepted the callback (2xx).

    Raises:
        GoneError: 410, the receiver refuses for good.
        ResponseRejectedError: any other status. Redirects are not followed.
    """
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    if status == HTTPStatus.GONE:
        raise GoneError
    wait = 0.0
    if status in RETRY_AFTER_STATUSES:
        wait = parse_retry_after(retry_after, now=now)
    raise ResponseRejectedError(status, retry_after=wait)


def retry_policy(command: SendCallback, *, give_up_after: float) -> RetryPolicy:
    """Return the retry policy of a callback: its own `retry`, or else all tiers."""
    expires_at = command.expires_at.timestamp() if command.expires_at else None
    own = command.retry
    if own is None:
        return RetryPolicy(give_up_after=give_up_after, expires_at=expires_at)
    delays = tuple(own.delays or RetryPolicy().delays)
    retries = len(delays) if own.quick_retries_count is None else own.quick_retries_count
    own_duration = sum(
        first_tier(delays[min(index, len(delays) - 1)]).seconds for index in range(retries)
    )
    return RetryPolicy(
        delays=delays,
        max_retries=retries,
        # The callback's own delays may take longer, but deferrals must end.
        give_up_after=give_up_after + 2 * own_duration,
        expires_at=expires_at,
    )
