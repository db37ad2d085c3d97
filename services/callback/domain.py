"""What goes out and what an answer means: pure functions, no IO."""

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

from shared.contracts.callback import SendCallback
from shared.errors import ContractViolationError, PermanentError, TransientError
from shared.http.retry_after import RETRY_AFTER_STATUSES, parse_retry_after
from shared.resilience.retry import RetryPolicy, first_tier

STANDARD_PREFIX: Final = "whsec_"
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

# Byte for byte what json.dumps(payload, sort_keys=True) gives; made once, since dumps with an
# argument makes an encoder each time.
_encode: Final = JSONEncoder(sort_keys=True, allow_nan=False).encode
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

# What a message may not set: framing and connection belong to the client, the rest to the
# signature. Compared in lower case.
RESERVED_HEADERS: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-signature",
    }
)
RESERVED_PREFIX: Final = "webhook-"


class SigningError(PermanentError):
    """The message can't be signed: its secret is malformed, or not known by that name."""


@dataclass(frozen=True, slots=True)
class Key:
    """A secret made ready: HMACs that have taken in their key and are copied for each use."""

    plain: hmac.HMAC
    standard: hmac.HMAC


@lru_cache(maxsize=4096)
def key(secret: str) -> Key:
    """The key in a secret; `whsec_` is base64 for Standard Webhooks, all else is UTF-8 bytes.

    Raises:
        SigningError: what follows `whsec_` is not base64, or nothing does.
    """
    raw = secret.encode()
    standard = raw
    if secret.startswith(STANDARD_PREFIX):
        try:
            standard = b64decode(secret.removeprefix(STANDARD_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise SigningError("the secret begins with whsec_ but is not base64 after it") from None
        if not standard:  # anybody can sign with an empty key
            raise SigningError("the secret is whsec_ with nothing after it")
    return Key(hmac.new(raw, digestmod="sha256"), hmac.new(standard, digestmod="sha256"))


def serialised(payload: Any) -> bytes:
    """The payload as it is signed and sent.

    Raises:
        ContractViolationError: a number that JSON lacks, or a NUL character.
    """
    try:
        text = _encode(payload)
    except (ValueError, RecursionError) as error:
        raise ContractViolationError(f"payload: {error}") from None
    if "\\u0000" in text and _NUL.search(text):
        raise ContractViolationError("payload: a text holds the character NUL")
    return text.encode()


def urlencoded(payload: Mapping[str, Any]) -> str:
    """The payload as a form or a query, by sorted names; what is no text is JSON.

    Raises:
        ContractViolationError: as of `serialised`; or a name or text that UTF-8 can't write.
    """
    serialised(payload)
    pairs = [(k, v if isinstance(v, str) else _encode(v)) for k, v in sorted(payload.items())]
    try:
        return urlencode(pairs)
    except UnicodeEncodeError as error:
        raise ContractViolationError(f"payload: {error}") from None


def with_query(url: str, query: str) -> str:
    """The URL with more in its query."""
    parts = urlsplit(url)
    joined = "&".join(part for part in (parts.query, query) if part)
    return parts._replace(query=joined).geturl()


def signed_headers(
    callback_id: str,
    body: bytes,
    keys: Sequence[Key],
    *,
    timestamp: int,
    content_type: str | None = JSON,
) -> CIMultiDict[str]:
    """Both signatures, under each key in order, and what a receiver needs to check them.

    No key, no signature.

    X-Signature: hex HMAC-SHA256 of the body, a header line for each key. webhook-signature:
    Standard Webhooks, `v1,` and base64 HMAC-SHA256 over `id.timestamp.body`.
    """
    headers: CIMultiDict[str] = CIMultiDict()
    prefix = f"{callback_id}.{timestamp}.".encode()
    standard = []
    for each in keys:
        digest = each.plain.copy()
        digest.update(body)
        headers.add("X-Signature", digest.hexdigest())
        digest = each.standard.copy()
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
    """The sender's headers without the reserved ones."""
    return {
        name: value
        for name, value in headers.items()
        if (low := name.lower()) not in RESERVED_HEADERS and not low.startswith(RESERVED_PREFIX)
    }


def judge(status: int, retry_after: str | None, *, now: float) -> None:
    """What the receiver's answer means: nothing to say when delivered (2xx).

    Raises:
        PermanentError: 410, a refusal for good.
        TransientError: anything else, redirects included; they are not followed.
    """
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    if status == HTTPStatus.GONE:
        raise PermanentError("the receiver answered 410: gone for good")
    wait = 0.0
    if status in RETRY_AFTER_STATUSES:
        wait = parse_retry_after(retry_after, now=now)
    raise TransientError(f"the receiver answered {status}", retry_after=wait)


def retry_policy(order: SendCallback, *, give_up_after: float) -> RetryPolicy:
    """How this callback is retried: by its own `retry`, else up all tiers for as long."""
    expires_at = order.expires_at.timestamp() if order.expires_at else None
    own = order.retry
    if own is None:
        return RetryPolicy(give_up_after=give_up_after, expires_at=expires_at)
    delays = tuple(own.delays or RetryPolicy().delays)
    retries = len(delays) if own.quick_retries_count is None else own.quick_retries_count
    wanted = sum(
        first_tier(delays[min(index, len(delays) - 1)]).seconds for index in range(retries)
    )
    return RetryPolicy(
        delays=delays,
        max_retries=retries,
        # Its own schedule may be longer; what waits behind an open breaker must end some time.
        give_up_after=give_up_after + 2 * wanted,
        expires_at=expires_at,
    )
