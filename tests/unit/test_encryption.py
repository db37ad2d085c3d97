"""Encryption of the secrets in the database."""

import base64
import os
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.security.encryption import DecryptionError, SecretCipher, parse_keys

OLD, NEW = os.urandom(32), os.urandom(32)
OLD_TEXT, NEW_TEXT = (base64.b64encode(key).decode() for key in (OLD, NEW))
CIPHER = SecretCipher([OLD])


@given(st.binary())
def test_decrypting_returns_the_secret(secret: bytes) -> None:
    assert CIPHER.decrypt(CIPHER.encrypt(secret)) == secret


def test_encrypting_twice_gives_different_bytes() -> None:
    assert CIPHER.encrypt(b"canary") != CIPHER.encrypt(b"canary")
    assert b"canary" not in CIPHER.encrypt(b"canary")


# Row 31
def test_row_31_with_several_keys_the_first_encrypts_and_all_decrypt() -> None:
    before = SecretCipher.of(OLD_TEXT).encrypt(b"secret")
    rotating = SecretCipher.of(f"{NEW_TEXT}, {OLD_TEXT}")
    assert rotating.decrypt(before) == b"secret"
    assert SecretCipher.of(NEW_TEXT).decrypt(rotating.encrypt(b"secret")) == b"secret"
    with pytest.raises(DecryptionError, match=r"not configured\. Add it to RINGBACK_SECRETS_KEY"):
        SecretCipher.of(NEW_TEXT).decrypt(before)


@dataclass(frozen=True)
class Damage:
    at: int
    error: str


@pytest.mark.parametrize(
    "damage",
    [
        Damage(0, "its format is unknown"),
        Damage(1, "is not configured"),
        Damage(5, "its bytes were changed"),
        Damage(17, "its bytes were changed"),
        Damage(-1, "its bytes were changed"),
    ],
)
def test_a_changed_byte_is_an_error(damage: Damage) -> None:
    encrypted = bytearray(CIPHER.encrypt(b"canary"))
    encrypted[damage.at] ^= 1
    with pytest.raises(DecryptionError, match=damage.error) as caught:
        CIPHER.decrypt(bytes(encrypted))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("length", range(35))
def test_a_truncated_secret_is_an_error(length: int) -> None:
    with pytest.raises(DecryptionError):
        CIPHER.decrypt(CIPHER.encrypt(b"canary")[:length])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("canary", 1),
        ("", 1),
        (base64.b64encode(b"canary").decode(), 1),
        (f"{OLD_TEXT},canary", 2),
        (f"{OLD_TEXT},", 2),
        (OLD_TEXT.rstrip("="), 1),
    ],
    ids=["no base64", "empty", "too short", "the second", "an empty second", "cut off"],
)
def test_an_invalid_key_is_reported_by_its_position_only(text: str, number: int) -> None:
    with pytest.raises(ValueError, match=f"key {number} must be 32 bytes in base64") as caught:
        parse_keys(text)
    assert "canary" not in str(caught.value)
