"""Service tickets: S9, row 33."""

import base64
import hashlib
import hmac
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, Key, KeySet, OctKey, OKPKey, RSAKey
from pydantic import SecretStr

from shared.security.jwks import public_keys, shared_key
from shared.security.settings import SecuritySettings
from shared.security.tickets import (
    CACHE_SIZE,
    TICKET_LIFETIME,
    InvalidTicketError,
    TicketIssuer,
    TicketVerifier,
)

SECRET = "canary-0123456789-0123456789-0123"
NOW = 1_800_000_000.0
GOOD = {"sub": "shop", "aud": "ringback", "exp": NOW + 60}
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})


class SetClock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def public(*keys: Key) -> KeySet:
    return KeySet.import_key_set({"keys": [key.as_dict(private=False) for key in keys]})


def verifier(*keys: Key, secret: str | None = SECRET) -> TicketVerifier:
    return TicketVerifier(secret, public(*keys) if keys else None, clock=SetClock())


def issuer(clock: SetClock | None = None) -> TicketIssuer:
    return TicketIssuer(shared_key(SECRET), clock=clock or SetClock())


def signed(claims: dict[str, Any], key: Key | None = None, **header: Any) -> str:
    """Sign as any other program would."""
    head = {"alg": "HS256"} | header
    key = key or OctKey.import_key(SECRET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # EdDSA is now named Ed25519
        return jwt.encode(head, claims, key, algorithms=[head["alg"]])


def by_hand(header: dict[str, Any], body: str, key: bytes = SECRET.encode()) -> str:
    """Sign with HMAC-SHA256, even if the header names another algorithm. Libraries refuse this."""
    parts = [
        base64.urlsafe_b64encode(part).rstrip(b"=")
        for part in (json.dumps(header).encode(), body.encode())
    ]
    mac = hmac.digest(key, b".".join(parts), hashlib.sha256)
    return b".".join([*parts, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()


def refusal(ticket: str, checker: TicketVerifier | None = None) -> str:
    with pytest.raises(InvalidTicketError) as caught:
        (checker or verifier()).verify(ticket)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def short_rsa() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        return RSAKey.generate_key(1024, private=False).as_dict()


# S9
def test_s9_a_ticket_names_its_client() -> None:
    assert verifier().verify(signed(GOOD)) == "shop"
    assert verifier().verify(signed(GOOD | {"aud": ["other", "ringback"]})) == "shop"
    assert verifier().verify(issuer().issue("Käufer 7", lifetime=1)) == "Käufer 7"


# S9
@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA"), (ED, "Ed25519")],
)
def test_s9_public_keys_and_the_secret_both_check_tickets(key: Key, algorithm: str) -> None:
    checker = verifier(RSA, EC, ED)
    assert checker.verify(signed(GOOD, key, alg=algorithm)) == "shop"
    assert checker.verify(signed(GOOD)) == "shop"
    assert "no configured key matches" in refusal(signed(GOOD, key, alg=algorithm))


# S9
def test_s9_the_kid_selects_one_of_several_keys() -> None:
    other = RSAKey.generate_key(2048, {"kid": "other"})
    checker = verifier(RSA, other)
    assert checker.verify(signed(GOOD, other, alg="RS256", kid="other")) == "shop"
    assert "bad_signature" in refusal(signed(GOOD, other, alg="RS256", kid="rsa"), checker)
    assert "matches its alg and kid" in refusal(signed(GOOD, other, alg="RS256"), checker)


# Row 24
def test_row_24_the_clock_of_a_client_may_be_a_minute_ahead() -> None:
    assert verifier().verify(signed(GOOD | {"iat": NOW + 60, "nbf": NOW + 60})) == "shop"


# Row 33
def test_row_33_a_public_key_is_not_used_as_a_shared_secret() -> None:
    public_key = RSA.as_pem(private=False)
    swapped = by_hand({"alg": "HS256", "kid": "rsa"}, json.dumps(GOOD), public_key)
    assert "no configured key matches" in refusal(swapped, verifier(RSA, secret=None))
    assert "bad_signature" in refusal(swapped, verifier(RSA))


# Row 33
@pytest.mark.parametrize("algorithm", ["none", "None", "HS384", "RS256", "ES256", "", None, 5, []])
def test_row_33_an_alg_of_another_key_type_is_rejected(algorithm: Any) -> None:
    refusal(by_hand({"alg": algorithm}, json.dumps(GOOD)), verifier(RSA, EC))
    unsigned = by_hand({"alg": algorithm}, json.dumps(GOOD)).rpartition(".")[0] + "."
    refusal(unsigned, verifier(RSA, EC))


# Row 33
def test_row_33_a_wrong_signature_is_rejected() -> None:
    assert "bad_signature" in refusal(signed(GOOD, OctKey.import_key(SECRET + "x")))
    head, _, mac = signed(GOOD).split(".")
    body = (
        base64.urlsafe_b64encode(json.dumps(GOOD | {"sub": "bank"}).encode()).decode().rstrip("=")
    )
    assert "bad_signature" in refusal(f"{head}.{body}.{mac}")


# Row 33
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 3600}, "expired"),
        ({"exp": None}, "exp must be a number"),
        ({"exp": "tomorrow"}, "exp must be a number"),
        ({"exp": True}, "exp must be a number"),
        ({"exp": float("nan")}, "exp must be a number"),
        ({"exp": float("inf")}, "exp must be a number"),
        ({"nbf": NOW + 61}, "not valid yet"),
        ({"aud": "bank"}, "not for ringback"),
        ({"aud": ["bank"]}, "not for ringback"),
        ({"aud": None}, "not for ringback"),
        ({"aud": {"ringback": 1}}, "not for ringback"),
        ({"aud": "ringbacks"}, "not for ringback"),
        ({"sub": None}, "sub must be a client id"),
        ({"sub": ""}, "sub must be a client id"),
        ({"sub": 7}, "sub must be a client id"),
        ({"sub": "a\x00b"}, "no control characters"),
        ({"sub": "a\nb"}, "no control characters"),
        ({"sub": "\ud800"}, "no control characters"),
        ({"sub": "x" * 256}, "1 to 255 characters"),
        ({"sub": "ringback.mailings"}, "must not begin with ringback."),
        ({"sub": "ringback."}, "must not begin with ringback."),
    ],
)
def test_row_33_invalid_claims_are_rejected(change: dict[str, Any], reason: str) -> None:
    assert reason in refusal(by_hand({"alg": "HS256"}, json.dumps(GOOD | change)))


# Row 33
@pytest.mark.parametrize("claim", ["exp", "aud", "sub"])
def test_row_33_missing_claims_are_rejected(claim: str) -> None:
    refusal(signed({key: value for key, value in GOOD.items() if key != claim}))


# Row 33, row 26
@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "..",
        "a.b.c",
        "ü.ü.ü",
        "\ud800.b.c",
        by_hand({"alg": "HS256"}, "[]"),
        by_hand({"alg": "HS256"}, "null"),
        by_hand({"alg": "HS256"}, "{"),
        by_hand({"alg": "HS256"}, "[" * 3000),
        by_hand({"alg": "HS256"}, '{"exp": 1e999999}'),
        by_hand({"alg": "HS256"}, f'{{"exp": {"9" * 4000}}}'),
        by_hand({"alg": "HS256", "crit": ["x"], "x": 1}, json.dumps(GOOD)),
        by_hand({"alg": "HS256", "b64": False, "crit": ["b64"]}, json.dumps(GOOD)),
        by_hand({"alg": "HS256", "kid": 5}, "5"),
        "x" * 100_000,
        "a.b.c.d.e",
    ],
)
def test_row_33_malformed_tickets_are_rejected(text: str) -> None:
    refusal(text, verifier(RSA))


# A response quotes the reason in a header, and the HTTP server rejects control characters there.
@pytest.mark.parametrize("algorithm", ["HS256\r\nX-Injected: y", "\x00", "\u2028", "\ud800"])
def test_row_33_a_reason_quotes_only_visible_characters_of_a_ticket(algorithm: str) -> None:
    for header in ({"alg": algorithm}, {"alg": "HS256", "crit": [algorithm]}):
        reason = refusal(by_hand(header, json.dumps(GOOD)))
        assert reason.isascii()
        assert reason.isprintable()


def test_without_a_key_every_ticket_is_invalid() -> None:
    assert "no configured key matches" in refusal(signed(GOOD), verifier(secret=None))


# S9
def test_s9_ringbacks_own_ticket_is_for_the_client_and_not_valid_for_ringback() -> None:
    own = issuer().own("shop")
    claims = jwt.decode(own, OctKey.import_key(SECRET), algorithms=["HS256"]).claims
    assert (claims["iss"], claims["aud"]) == ("ringback", "shop")
    assert claims["exp"] >= NOW + TICKET_LIFETIME
    refusal(own)
    refusal(issuer().own("ringback"))


# S9
def test_s9_an_own_ticket_is_reused_while_it_is_valid_long_enough() -> None:
    clock = SetClock()
    tickets = issuer(clock)
    first = tickets.own("shop")
    clock.time += TICKET_LIFETIME - 1
    assert tickets.own("shop") == first
    clock.time += 2
    second = tickets.own("shop")
    assert second != first
    claims = jwt.decode(second, OctKey.import_key(SECRET), algorithms=["HS256"]).claims
    assert claims["exp"] - clock.time >= TICKET_LIFETIME
    assert tickets.own("bank") not in (first, second)


def test_own_tickets_are_cached_for_recent_clients_only() -> None:
    clock = SetClock()
    tickets = issuer(clock)
    first = tickets.own("shop")
    clock.time += 1
    for number in range(CACHE_SIZE):
        tickets.own(f"client {number}")
    assert tickets.own("shop") != first


@pytest.mark.parametrize("client", ["", "a\nb", "x" * 256])
def test_no_ticket_is_issued_for_an_invalid_client_id(client: str) -> None:
    with pytest.raises(InvalidTicketError):
        issuer().issue(client, lifetime=60)


def test_keys_come_from_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(public(RSA, EC, ED).as_dict()))
    assert [key.kid for key in public_keys(file)] == ["rsa", "ec", "ed"]
    valid = {"sub": "shop", "aud": "ringback", "exp": 2 * NOW}
    both = TicketVerifier.of(SecuritySettings(ticket_key=SecretStr(SECRET), ticket_jwks_file=file))
    assert both.verify(signed(valid)) == both.verify(signed(valid, EC, alg="ES256")) == "shop"


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ([OctKey.import_key(SECRET).as_dict()], "key 1: a JWKS must not contain a symmetric"),
        ([EC.as_dict(private=False), ED.as_dict(private=True)], "key 2: this is a private key"),
        ([short_rsa()], "2048 bits or more"),
        ([ECKey.generate_key("P-384", private=False).as_dict()], "P-256"),
        ([OKPKey.generate_key("X25519", private=False).as_dict()], "Ed25519"),
        ([RSA.as_dict(private=False) | {"alg": "RS512"}], "its alg must be RS256"),
        ([EC.as_dict(private=False), EC.as_dict(private=False)], "the same kid"),
        ([], "is not a valid JWKS"),
        ([{"kty": "canary"}], "is not a valid JWKS"),
        ([{}], "is not a valid JWKS"),
        ([5], "is not a valid JWKS"),
        (5, "is not a valid JWKS"),
    ],
)
def test_a_jwks_with_unusable_keys_is_rejected(tmp_path: Path, keys: Any, fault: str) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": keys}))
    with pytest.raises(ValueError, match=fault) as caught:
        public_keys(file)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'"canary"'])
def test_an_invalid_jwks_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not a valid JWKS") as caught:
        public_keys(file)
    assert "canary" not in str(caught.value)


def test_a_missing_jwks_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*missing.json: No such file"):
        public_keys(tmp_path / "missing.json")
