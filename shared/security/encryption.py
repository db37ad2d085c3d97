"""Encryption at rest: secrets are stored in the database under AES-256-GCM.

An encrypted secret is one byte for the format, 4 bytes that identify the key, a nonce of 12 bytes
and the ciphertext.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from shared.errors import RingbackError

KEY_BYTES: Final = 32
_FORMAT: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_HEADER_BYTES: Final = len(_FORMAT) + _KEY_ID_BYTES
# NIST SP 800-38D recommends 12 bytes for GCM. Random nonces allow 2**32 secrets for one key.
_NONCE_BYTES: Final = 12


class DecryptionError(RingbackError):
    """A secret cannot be decrypted: its key is not configured, or its bytes were changed."""


class ResealedBatch(NamedTuple):
    """The rows of one batch whose secrets are encrypted again with the first key.

    read: how many were read.
    resealed: how many of them were encrypted again.
    skipped: how many were changed by another process at the same time.
    faults: why the others cannot be decrypted.
    """

    read: int
    resealed: int
    skipped: int
    faults: tuple[str, ...]


class MissingSecretsKeyError(RingbackError):
    """The key that encrypts secrets in the database is not configured."""

    exit_code = 2


class SecretCipher:
    """Encrypts with the first of its keys, and decrypts with any of them."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._first = _key_id(keys[0])

    @classmethod
    def of(cls, text: str) -> "SecretCipher":
        """Return the cipher for the setting `secrets_key`.

        Raises:
            ValueError: see `parse_keys`.
        """
        return cls(parse_keys(text))

    @classmethod
    def required(cls, key: SecretStr | None, service: str) -> "SecretCipher":
        """Return the cipher for the setting `secrets_key`, without which a service cannot start.

        Raises:
            MissingSecretsKeyError: it is not configured.
        """
        if key is None:
            raise MissingSecretsKeyError(
                f"Cannot start {service}: RINGBACK_SECRETS_KEY is not set, so secrets cannot be"
                " encrypted. Create a key with `openssl rand -base64 32`."
            )
        return cls.of(key.get_secret_value())

    def encrypt(self, secret: bytes) -> bytes:
        """Return the encrypted secret. It is different each time."""
        header = self.prefix
        nonce = os.urandom(_NONCE_BYTES)
        return header + nonce + self._ciphers[self._first].encrypt(nonce, secret, header)

    @property
    def prefix(self) -> bytes:
        """Return the first bytes of everything that the first key encrypts."""
        return _FORMAT + self._first

    def decrypt(self, encrypted: bytes) -> bytes:
        """Return the secret that was encrypted.

        Raises:
            DecryptionError: its key is not configured, or its bytes were changed.
        """
        header, rest = encrypted[:_HEADER_BYTES], encrypted[_HEADER_BYTES:]
        if len(encrypted) < _HEADER_BYTES + _NONCE_BYTES or not header.startswith(_FORMAT):
            raise DecryptionError("cannot decrypt a secret: its format is unknown")
        key_id = header[len(_FORMAT) :]
        if key_id not in self._ciphers:
            configured = ", ".join(map(bytes.hex, self._ciphers))
            raise DecryptionError(
                f"cannot decrypt a secret: its key {key_id.hex()} is not configured. Add it to"
                f" RINGBACK_SECRETS_KEY, which has {configured}"
            )
        try:
            return self._ciphers[key_id].decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], header)
        except InvalidTag:
            raise DecryptionError("cannot decrypt a secret: its bytes were changed") from None


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Return the keys in a comma-separated list of base64.

    Raises:
        ValueError: a key is not 32 bytes in base64; never with its text.
    """
    keys = []
    for number, part in enumerate(text.split(","), start=1):
        try:
            key = base64.b64decode(part.strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise ValueError(
                f"key {number} must be {KEY_BYTES} bytes in base64. Create one with"
                f" `openssl rand -base64 {KEY_BYTES}`"
            )
        keys.append(key)
    return tuple(keys)


def _key_id(key: bytes) -> bytes:
    """Return an identifier that distinguishes keys and reveals nothing about them."""
    return hashlib.sha256(b"ringback " + key).digest()[:_KEY_ID_BYTES]
