"""Sealing: secrets as they lie in the database, under AES-256-GCM.

A sealed secret is one byte for the form, 4 bytes that name the key, a nonce of 12 and the rest.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import RingbackError

KEY_BYTES: Final = 32
_FORM: Final = b"\x01"
_NAME_BYTES: Final = 4
_HEAD_BYTES: Final = len(_FORM) + _NAME_BYTES
# What NIST SP 800-38D recommends for GCM. Random ones: one key is good for 2**32 secrets.
_NONCE_BYTES: Final = 12


class DecryptionError(RingbackError):
    """A sealed secret can't be opened: its key is not configured, or the bytes were changed."""


class SecretCipher:
    """Seals under the first of its keys, and opens what was sealed under any of them."""

    def __init__(self, parse_keys: Sequence[bytes]) -> None:
        self._ciphers = {_name(key): AESGCM(key) for key in parse_keys}
        self._first = _name(parse_keys[0])

    @classmethod
    def of(cls, text: str) -> "SecretCipher":
        """From the setting `secrets_key`.

        Raises:
            ValueError: see `keys`.
        """
        return cls(parse_keys(text))

    def seal(self, text: str) -> bytes:
        """The text, unreadable without the key, and different each time."""
        head = _FORM + self._first
        nonce = os.urandom(_NONCE_BYTES)
        return head + nonce + self._ciphers[self._first].encrypt(nonce, text.encode(), head)

    def open(self, sealed: bytes) -> str:
        """The text that was sealed.

        Raises:
            DecryptionError: the key is not among ours, or the bytes are not as they were sealed.
        """
        head, rest = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES:]
        if len(sealed) < _HEAD_BYTES + _NONCE_BYTES or not head.startswith(_FORM):
            raise DecryptionError("a sealed secret is damaged: it has not the form of one")
        name = head[len(_FORM) :]
        if name not in self._ciphers:
            ours = ", ".join(map(bytes.hex, self._ciphers))
            raise DecryptionError(
                f"a secret was sealed under the key {name.hex()}, which is not configured: add it"
                f" to RINGBACK_SECRETS_KEY, which now has {ours}"
            )
        try:
            text = self._ciphers[name].decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], head)
        except InvalidTag:
            raise DecryptionError("a sealed secret is damaged: its bytes were changed") from None
        return text.decode()


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Keys from base64, separated by commas.

    Raises:
        ValueError: one of them is not 32 bytes in base64; the text does not hold it.
    """
    found = []
    for number, part in enumerate(text.split(","), start=1):
        try:
            key = base64.b64decode(part.strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise ValueError(
                f"key {number} must be {KEY_BYTES} bytes in base64; make one: openssl rand -base64"
                f" {KEY_BYTES}"
            )
        found.append(key)
    return tuple(found)


def _name(key: bytes) -> bytes:
    """What tells keys apart without telling anything of them."""
    return hashlib.sha256(b"ringback " + key).digest()[:_NAME_BYTES]
