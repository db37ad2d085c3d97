"""Checks the signatures of a webhook as an outside receiver does.

This follows the published rules and does not share code with the signer, so that one checks the
other.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multidict import MultiMapping

DEFAULT_SECRET = "your-secret-key"  # noqa: S105 - public, so that the documented example verifies
STANDARD_PREFIX = "whsec_"
# Seconds that a `webhook-timestamp` may differ from the receiver's clock, as in the reference
# libraries of Standard Webhooks.
TOLERANCE = 300

_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SecretKeys:
    """The key bytes of one secret in each of the two schemes."""

    plain: bytes
    standard: bytes

    @classmethod
    def derive(cls, secret: str) -> "SecretKeys":
        """Derive the keys of a secret.

        Raises:
            ValueError: it begins with `whsec_` but does not continue in base64.
        """
        plain = secret.encode()
        if not secret.startswith(STANDARD_PREFIX):
            return cls(plain, plain)
        try:
            standard = base64.b64decode(secret.removeprefix(STANDARD_PREFIX), validate=True)
        except binascii.Error:
            standard = b""
        if not standard:
            raise ValueError("a secret that begins with whsec_ must continue in base64")
        return cls(plain, standard)


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """The result of a check: the schemes that matched, and the faults.

    Every signature that is present must match. While secrets are rotated, X-Signature is that of
    the first, which a receiver may not know. A matching webhook-signature is then enough.
    """

    matched: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def verified(self) -> bool:
        """True if there was a signature and no fault."""
        return bool(self.matched) and not self.faults


def check_signatures(
    headers: Mapping[str, str], body: bytes, keys: Sequence[SecretKeys], now: float
) -> SignatureCheck:
    """Check `X-Signature` and the Standard Webhooks headers against any of the keys.

    Args:
        headers: case-insensitive, or with lower-case names.
        body: the raw bytes.
        keys: at least one; the old and the new one during a rotation.
        now: Unix time in seconds.
    """
    schemes = {
        "x-signature": _fault_in_x_signature,
        "webhook-signature": _fault_in_webhook_signature,
    }
    matched: list[str] = []
    faults: list[str] = []
    for scheme, fault_in in schemes.items():
        if scheme in headers:
            fault = fault_in(headers, body, keys, now)
            if fault is None:
                matched.append(scheme)
            else:
                faults.append(f"{scheme}: {fault}")
    if matched == ["webhook-signature"] and " " in headers["webhook-signature"]:
        faults.clear()
    if not matched and not faults:
        faults.append("no signature: neither x-signature nor webhook-signature is present")
    return SignatureCheck(tuple(matched), tuple(faults))


def _fault_in_x_signature(
    headers: Mapping[str, str], body: bytes, keys: Sequence[SecretKeys], _now: float
) -> str | None:
    # Some senders send one header line for each secret during a rotation.
    lines = [headers["x-signature"]]
    if isinstance(headers, MultiMapping):
        lines = headers.getall("x-signature")
    expected = [hmac.digest(key.plain, body, "sha256").hex().encode() for key in keys]
    for received in map(_octets, lines):
        if any(hmac.compare_digest(received, signature) for signature in expected):
            return None
    return "is not the lower-case hex HMAC-SHA256 of the body with a secret of this mailbox"


def _fault_in_webhook_signature(
    headers: Mapping[str, str], body: bytes, keys: Sequence[SecretKeys], now: float
) -> str | None:
    identity = headers.get("webhook-id")
    timestamp = headers.get("webhook-timestamp")
    if not identity or not timestamp:
        return f"{'webhook-timestamp' if identity else 'webhook-id'} is missing"
    if not _TIMESTAMP.fullmatch(timestamp):
        return "webhook-timestamp is not a Unix time in whole seconds"
    age = now - int(timestamp)
    if abs(age) > TOLERANCE:
        return (
            f"webhook-timestamp is {abs(age):.0f} s {'old' if age > 0 else 'ahead'}; "
            f"at most {TOLERANCE} s are allowed"
        )
    signed = b".".join((_octets(identity), timestamp.encode(), body))
    received = [_octets(entry) for entry in headers["webhook-signature"].split(" ")]
    for key in keys:
        digest = hmac.digest(key.standard, signed, "sha256")
        expected = b"v1," + base64.b64encode(digest)
        # Not `any`: compare every entry, so that the duration reveals nothing.
        if sum([hmac.compare_digest(entry, expected) for entry in received]):
            return None
    return "no v1 entry is the HMAC-SHA256 of id.timestamp.body with a secret of this mailbox"


def _octets(header: str) -> bytes:
    """Return a header's bytes; aiohttp decodes bytes that are not UTF-8 to surrogates."""
    return header.encode("utf-8", "surrogateescape")
