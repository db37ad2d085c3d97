"""Secrets as they lie in the database."""

import base64
import os
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.security.encryption import DecryptionError, SecretCipher, parse_keys

OLD, NEW = os.urandom(32), os.urandom(32)
OLD_TEXT, NEW_TEXT = (base64.b64encode(key).decode() for key in (OLD, NEW))
SEAL = SecretCipher([OLD])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_was_sealed_comes_back(text: str) -> None:
    assert SEAL.open(SEAL.seal(text)) == text


def test_sealed_twice_is_not_the_same() -> None:
    assert SEAL.seal("canary") != SEAL.seal("canary")
    assert b"canary" not in SEAL.seal("canary")


# Row 31
def test_row_31_keys_rotate_the_first_seals_and_all_open() -> None:
    before = SecretCipher.of(OLD_TEXT).seal("secret")
    rotating = SecretCipher.of(f"{NEW_TEXT}, {OLD_TEXT}")
    assert rotating.open(before) == "secret"
    assert SecretCipher.of(NEW_TEXT).open(rotating.seal("secret")) == "secret"
    with pytest.raises(DecryptionError, match="not configured: add it to RINGBACK_SECRETS_KEY"):
        SecretCipher.of(NEW_TEXT).open(before)


@dataclass(frozen=True)
class Damage:
    at: int
    error: str


@pytest.mark.parametrize(
    "damage",
    [
        Damage(0, "has not the form of one"),
        Damage(1, "which is not configured"),
        Damage(5, "its bytes were changed"),
        Damage(17, "its bytes were changed"),
        Damage(-1, "its bytes were changed"),
    ],
)
def test_a_changed_byte_is_noticed_wherever_it_is(damage: Damage) -> None:
    sealed = bytearray(SEAL.seal("canary"))
    sealed[damage.at] ^= 1
    with pytest.raises(DecryptionError, match=damage.error) as caught:
        SEAL.open(bytes(sealed))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("length", range(35))
def test_a_sealed_secret_cut_short_is_noticed(length: int) -> None:
    with pytest.raises(DecryptionError):
        SEAL.open(SEAL.seal("canary")[:length])


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
def test_a_wrong_key_is_named_by_its_place_and_not_told(text: str, number: int) -> None:
    with pytest.raises(ValueError, match=f"key {number} must be 32 bytes in base64") as caught:
        parse_keys(text)
    assert "canary" not in str(caught.value)
