"""M11: the checks of an ID token."""

import base64
import hmac
import json
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from services.console.sign_in.errors import Reason, SignInError
from services.console.sign_in.id_tokens import (
    LEEWAY,
    MAX_TOKEN_LENGTH,
    Expected,
    UnknownKeyError,
    provider_keys,
    verified_claims,
)

NOW = 1_800_000_000.0
ISSUER = "https://id.example.com/realms/company"
EXPECTED = Expected(ISSUER, "ringback", "the-nonce")
CLAIMS = {
    "iss": ISSUER,
    "sub": "user-1",
    "aud": "ringback",
    "exp": NOW + 300,
    "iat": NOW,
    "nonce": "the-nonce",
}
KEY = ECKey.generate_key("P-256", {"kid": "one"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})


def token(
    claims: Mapping[str, Any] | None = None, key: Key = KEY, alg: str = "ES256", **header: Any
) -> str:
    content = {name: value for name, value in (CLAIMS | dict(claims or {})).items() if value != ...}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        return jwt.encode({"alg": alg, "kid": key.kid} | header, content, key, algorithms=[alg])


def published(*keys: Key, **members: Any) -> list[Key]:
    return provider_keys({"keys": [key.as_dict(private=False) | members for key in keys]})


def reason(text: str, keys: list[Key] | None = None, now: float = NOW) -> Reason:
    with pytest.raises(SignInError) as caught:
        verified_claims(text, published(KEY) if keys is None else keys, EXPECTED, now)
    assert text not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    ("key", "alg"), [(KEY, "ES256"), (RSA, "RS256"), (ED, "EdDSA"), (ED, "Ed25519")]
)
def test_m11_a_valid_token_of_each_algorithm_is_accepted(key: Key, alg: str) -> None:
    text = token(key=key, alg=alg)
    claims = verified_claims(text, published(KEY, RSA, ED), EXPECTED, NOW)
    assert claims["sub"] == "user-1"


def test_m11_a_set_with_one_key_needs_no_kid() -> None:
    text = jwt.encode({"alg": "ES256"}, CLAIMS, KEY)
    assert verified_claims(text, published(KEY, RSA), EXPECTED, NOW)["sub"] == "user-1"
    assert reason(text, published(KEY, ECKey.generate_key("P-256"))) is Reason.KEY


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"nonce": "other"}, Reason.NONCE),
        ({"nonce": ...}, Reason.NONCE),
        ({"nonce": ["the-nonce"]}, Reason.NONCE),
        ({"iss": f"{ISSUER}/"}, Reason.ISSUER),
        ({"iss": ...}, Reason.ISSUER),
        ({"aud": "another"}, Reason.AUDIENCE),
        ({"aud": ["another", "third"]}, Reason.AUDIENCE),
        ({"aud": ...}, Reason.AUDIENCE),
        ({"aud": ["ringback", "another"]}, Reason.AUDIENCE),
        ({"aud": ["ringback", "another"], "azp": "another"}, Reason.AUDIENCE),
        ({"azp": "another"}, Reason.AUDIENCE),
        ({"exp": NOW - LEEWAY}, Reason.EXPIRED),
        ({"exp": ...}, Reason.TOKEN),
        ({"exp": "soon"}, Reason.TOKEN),
        ({"exp": True}, Reason.TOKEN),
        ({"iat": NOW + LEEWAY + 1}, Reason.EXPIRED),
        ({"iat": ...}, Reason.TOKEN),
        ({"nbf": NOW + LEEWAY + 1}, Reason.EXPIRED),
        ({"sub": ...}, Reason.TOKEN),
        ({"sub": ""}, Reason.TOKEN),
        ({"sub": 7}, Reason.TOKEN),
    ],
)
def test_m11_a_wrong_claim_is_refused(claims: dict[str, Any], expected: Reason) -> None:
    assert reason(token(claims)) is expected


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["ringback"]},
        {"aud": ["ringback", "another"], "azp": "ringback"},
        {"exp": NOW - LEEWAY + 1},
        {"iat": NOW + LEEWAY - 1},
        {"nbf": NOW},
    ],
)
def test_m11_a_usual_variant_is_accepted(claims: dict[str, Any]) -> None:
    assert verified_claims(token(claims), published(KEY), EXPECTED, NOW)


def test_m11_an_unsigned_token_is_refused() -> None:
    parts = [_part(json.dumps(each).encode()) for each in ({"alg": "none"}, CLAIMS)]
    assert reason(".".join([*parts, ""])) is Reason.ALGORITHM


def test_m11_the_public_key_is_not_a_shared_secret() -> None:
    header = {"alg": "HS256", "kid": "one"}
    signed = ".".join(_part(json.dumps(each).encode()) for each in (header, CLAIMS))
    signature = hmac.digest(KEY.as_pem(private=False), signed.encode(), "sha256")
    assert reason(f"{signed}.{_part(signature)}") is Reason.ALGORITHM


def _part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


@pytest.mark.parametrize("alg", ["HS256", "RS512", "PS256", "ES384", "none", "", None, ["ES256"]])
def test_m11_only_three_algorithms_are_accepted(alg: Any) -> None:
    header = base64.urlsafe_b64encode(json.dumps({"alg": alg, "kid": "one"}).encode())
    _, payload, signature = token().split(".")
    text = f"{header.decode().rstrip('=')}.{payload}.{signature}"
    assert reason(text) in (Reason.ALGORITHM, Reason.TOKEN)


def test_m11_the_key_decides_the_algorithm() -> None:
    header = base64.urlsafe_b64encode(json.dumps({"alg": "RS256", "kid": "one"}).encode())
    _, payload, signature = token().split(".")
    text = f"{header.decode().rstrip('=')}.{payload}.{signature}"
    assert reason(text) is Reason.KEY


def test_m11_a_token_of_an_unknown_key_is_refused() -> None:
    other = ECKey.generate_key("P-256", {"kid": "two"})
    with pytest.raises(UnknownKeyError):
        verified_claims(token(key=other), published(KEY), EXPECTED, NOW)
    # Another key with the same name.
    assert reason(token(key=ECKey.generate_key("P-256", {"kid": "one"}))) is Reason.SIGNATURE


@pytest.mark.parametrize(
    "text",
    ["", "x", "a.b", "a.b.c", "....", "é.é.é", "x" * (MAX_TOKEN_LENGTH + 1), "W10.e30.x"],
    ids=lambda text: text[:8],
)
def test_m11_what_is_not_a_token_is_refused(text: str) -> None:
    with pytest.raises(SignInError) as caught:
        verified_claims(text, published(KEY), EXPECTED, NOW)
    assert caught.value.reason in (Reason.TOKEN, Reason.ALGORITHM)


def test_m11_a_changed_payload_is_refused() -> None:
    header, _, signature = token().split(".")
    payload = token({"sub": "somebody-else"}).split(".")[1]
    assert reason(f"{header}.{payload}.{signature}") is Reason.SIGNATURE


def test_m11_keys_that_cannot_verify_are_left_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        short = RSAKey.generate_key(1024)
    jwks = {
        "keys": [
            KEY.as_dict(private=False),
            KEY.as_dict(private=False) | {"use": "enc"},
            KEY.as_dict(private=False) | {"alg": "RS256"},
            short.as_dict(private=False),
            ECKey.generate_key("P-384").as_dict(private=False),
            OctKey.generate_key(256).as_dict(),
            {"kty": "PQC"},
            {},
            "text",
            None,
        ]
    }
    assert [key.kid for key in provider_keys(jwks)] == ["one"]


@pytest.mark.parametrize("jwks", [None, [], {}, {"keys": {}}, "keys"])
def test_m11_what_is_not_a_key_set_is_refused(jwks: Any) -> None:
    with pytest.raises(ValueError, match="not a JWKS"):
        provider_keys(jwks)
