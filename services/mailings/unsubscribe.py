"""Signed links that unsubscribe a recipient from a kind of e-mail. Pure.

A token is the id of a subscription and its signature. It never expires, because a mail can be read
after years. It is valid as long as the key that signed it is configured.
"""

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

# Bytes. An id does not reveal the address to those who see the link or the database.
_ID_LENGTH: Final = 16
_SIGNATURE_LENGTH: Final = 16
_PURPOSE: Final = b"ringback unsubscribe"


def subscription_id(address: str, kind: str) -> bytes:
    """Return the id of the subscription of an e-mail address to a kind of notification."""
    return sha256(f"{address.lower()}\0{kind}".encode()).digest()[:_ID_LENGTH]


class Unsubscribe:
    """Signs links with the first key, and verifies their tokens with all keys.

    url: the public URL of the gateway's route; None if messages have no link.
    """

    def __init__(self, url: str | None, keys: Sequence[bytes]) -> None:
        self._keys = [hmac.digest(key, _PURPOSE, "sha256") for key in keys]
        self._url = url if self._keys else None

    def link(self, subscription: bytes) -> str | None:
        """Return the link that ends a subscription."""
        if self._url is None:
            return None
        token = urlsafe_b64encode(subscription + _signature(self._keys[0], subscription))
        return f"{self._url}?token={token.rstrip(b'=').decode()}"

    def verified(self, token: str) -> bytes | None:
        """Return the id of the subscription in a token, or None if the token is not valid."""
        try:
            content = urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4))
        except (binascii.Error, UnicodeEncodeError):
            return None
        subscription, signature = content[:_ID_LENGTH], content[_ID_LENGTH:]
        valid = [
            hmac.compare_digest(_signature(key, subscription), signature) for key in self._keys
        ]
        return subscription if any(valid) else None


def _signature(key: bytes, subscription: bytes) -> bytes:
    return hmac.digest(key, subscription, "sha256")[:_SIGNATURE_LENGTH]
