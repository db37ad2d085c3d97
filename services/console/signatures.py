"""Checks the signature of a received callback, and says why it does not verify. Pure."""

import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from shared.contracts.callback import STANDARD_PREFIX

# Seconds that receivers of Standard Webhooks usually accept.
TOLERANCE: Final = 300


@dataclass(frozen=True, slots=True)
class Check:
    """The result for one kind of signature."""

    name: str
    verified: bool
    text: str


def parse_headers(text: str) -> dict[str, str]:
    """Return the headers of a text with a header on each line, by their lower-case names."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def check(body: bytes, headers: Mapping[str, str], secret: str, now: datetime) -> list[Check]:
    """Return the results for `X-Signature` and for `webhook-signature`.

    headers: with lower-case names. secret: as configured; `whsec_` continues in base64.
    """
    try:
        standard = _standard_key(secret)
    except ValueError:
        return [_wrong("Secret", f"After {STANDARD_PREFIX} it must continue in base64.")]
    return [
        _plain(body, headers, secret.encode(), standard),
        _standard(body, headers, standard, now),
    ]


def _plain(body: bytes, headers: Mapping[str, str], key: bytes, standard: bytes) -> Check:
    name = "X-Signature"
    given = headers.get("x-signature")
    if given is None:
        return _wrong(name, "The header is missing.")
    if _equal(given, _hex(key, body)):
        return _right(name, "It is the HMAC-SHA256 of the body.")
    if _equal(given.lower(), _hex(key, body)):
        text = "It is in capitals. Ringback sends lower-case hex, so something changed it."
        return _wrong(name, text)
    if _equal(given, _hex(standard, body)):
        text = f"It was made with the base64 after {STANDARD_PREFIX}; use the secret as it is."
        return _wrong(name, text)
    return _wrong(name, _difference(given, body, key))


def _difference(given: str, body: bytes, key: bytes) -> str:
    """Return why an X-Signature is another one than expected."""
    stripped = body.strip()
    for candidate, cause in (
        (stripped, "spaces or line breaks around it"),
        (body + b"\n", "a line break at its end, which is missing here"),
        (body.replace(b"\r\n", b"\n"), "line breaks, which became CR LF"),
    ):
        if candidate != body and _equal(given, _hex(key, candidate)):
            return f"The body was changed: {cause}. Verify the bytes as they arrived."
    return "It is of another body or another secret. Verify the bytes as they arrived."


def _standard(body: bytes, headers: Mapping[str, str], key: bytes, now: datetime) -> Check:
    name = "webhook-signature"
    missing = [
        header
        for header in ("webhook-id", "webhook-timestamp", "webhook-signature")
        if header not in headers
    ]
    if missing:
        return _wrong(name, f"Missing: {', '.join(missing)}.")
    timestamp = headers["webhook-timestamp"]
    signed = f"{headers['webhook-id']}.{timestamp}.".encode() + body
    expected = b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    versions = [each.partition(",") for each in headers["webhook-signature"].split()]
    if not any(version == "v1" and _equal(value, expected) for version, _, value in versions):
        text = "No signature is that of webhook-id, webhook-timestamp and the body."
        return _wrong(name, text)
    try:
        sent = datetime.fromtimestamp(int(timestamp), UTC)
    except (ValueError, OverflowError, OSError):
        return _wrong(name, "webhook-timestamp is not a time.")
    age = (now - sent).total_seconds()
    text = "It is that of webhook-id, webhook-timestamp and the body."
    if abs(age) > TOLERANCE:
        text += (
            f" Its time is {abs(age):.0f} s {'ago' if age > 0 else 'ahead'}. Receivers usually"
            f" refuse more than {TOLERANCE} s."
        )
    return _right(name, text)


def _right(name: str, text: str) -> Check:
    return Check(name, verified=True, text=text)


def _wrong(name: str, text: str) -> Check:
    return Check(name, verified=False, text=text)


def _standard_key(secret: str) -> bytes:
    """Return the key of `webhook-signature`. That of `X-Signature` is the secret as it is."""
    if secret.startswith(STANDARD_PREFIX):
        return b64decode(secret.removeprefix(STANDARD_PREFIX), validate=True)
    return secret.encode()


def _hex(key: bytes, body: bytes) -> str:
    return hmac.digest(key, body, hashlib.sha256).hex()


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
