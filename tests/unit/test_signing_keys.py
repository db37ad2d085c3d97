"""Keys that sign Ringback's own tickets: S9, and the JWKS that verifies them."""

import base64
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from pydantic import SecretStr

from shared.contracts.schedules import MAX_OWN_TICKET_BYTES
from shared.security.jwks import (
    MAX_KID_LENGTH,
    MAX_RSA_BITS,
    public_keys,
    published_jwks,
    signing_keys,
)
from shared.security.settings import SecuritySettings
from shared.security.tickets import (
    InvalidTicketError,
    PublicSigningKeyError,
    TicketIssuer,
    TicketVerifier,
)

ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "verify-a-ticket.md"


def pem(key: OKPKey | RSAKey | ECKey, *, private: bool = True) -> str:
    return key.as_pem(private=private).decode()


def jwk(key: Key, **more: Any) -> str:
    return json.dumps(key.as_dict(private=True) | more)


def issuer(text: str, **settings: Any) -> TicketIssuer:
    found = TicketIssuer.of(SecuritySettings(ticket_signing_key=SecretStr(text), **settings))
    assert found is not None
    return found


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def verified(ticket: str, jwks: dict[str, Any]) -> dict[str, Any]:
    """Verify a ticket with the JWKS alone, and with another library than Ringback's."""
    signed, _, signature = ticket.rpartition(".")
    header, claims = (json.loads(decoded(part)) for part in signed.split("."))
    (key,) = [key for key in jwks["keys"] if key["kid"] == header["kid"]]
    assert key["alg"] == header["alg"]
    if key["alg"] == "EdDSA":
        assert (key["kty"], key["crv"]) == ("OKP", "Ed25519")
        public = Ed25519PublicKey.from_public_bytes(decoded(key["x"]))
        public.verify(decoded(signature), signed.encode())
    else:
        assert (key["kty"], key["alg"]) == ("RSA", "RS256")
        n, e = (int.from_bytes(decoded(key[name])) for name in "ne")
        rsa = RSAPublicNumbers(e, n).public_key()
        rsa.verify(decoded(signature), signed.encode(), PKCS1v15(), SHA256())
    assert isinstance(claims, dict)
    return claims


# S9
@pytest.mark.parametrize("key", [ED, RSA], ids=["EdDSA", "RS256"])
@pytest.mark.parametrize("form", [pem, jwk], ids=["PEM", "JWK"])
def test_finding_a15_the_published_keys_verify_ringbacks_own_tickets(key: Key, form: Any) -> None:
    text = form(key)
    claims = verified(issuer(text).own("shop"), published_jwks(signing_keys(text)))
    assert (claims["iss"], claims["aud"]) == ("ringback", "shop")
    assert "sub" not in claims


# S9
def test_finding_a15_the_signing_key_comes_before_the_shared_key() -> None:
    both = issuer(jwk(ED), ticket_key=SecretStr("x" * 32))
    assert verified(both.own("shop"), published_jwks([ED]))
    shared = TicketIssuer.of(SecuritySettings(ticket_key=SecretStr("x" * 32)))
    assert shared is not None
    assert json.loads(decoded(shared.own("shop").partition(".")[0]))["alg"] == "HS256"
    assert TicketIssuer.of(SecuritySettings()) is None


# S9
@pytest.mark.parametrize(
    "text",
    [
        pem(RSA) + pem(ED),
        pem(RSA) + pem(ED, private=False),
        (pem(RSA) + pem(ED)).replace("\n", "\\n"),
        json.dumps({"keys": [json.loads(jwk(RSA)), json.loads(jwk(ED))]}),
    ],
    ids=["PEM", "PEM with the old public key", "PEM in one line", "JWKS"],
)
def test_finding_a15_during_a_rotation_the_first_key_signs_and_all_are_published(text: str) -> None:
    jwks = published_jwks(signing_keys(text))
    assert [key["alg"] for key in jwks["keys"]] == ["RS256", "EdDSA"]
    before = jwks["keys"][1]["kid"]
    old = issuer(json.dumps(ED.as_dict(private=True) | {"kid": before})).own("shop")
    for ticket, algorithm in ((issuer(text).own("shop"), "RS256"), (old, "EdDSA")):
        assert json.loads(decoded(ticket.partition(".")[0]))["alg"] == algorithm
        assert verified(ticket, jwks)


def test_finding_a15_the_published_keys_contain_nothing_private() -> None:
    text = jwk(RSA, key_ops=["sign"], canary="canary")
    (key,) = published_jwks(signing_keys(text))["keys"]
    assert set(key) == {"kty", "n", "e", "kid", "use", "alg"}


def test_a_key_without_a_kid_has_its_thumbprint() -> None:
    key = OKPKey.generate_key("Ed25519")
    for text in (jwk(key), pem(key), pem(key, private=False)):
        assert signing_keys(text)[0].kid == key.thumbprint()


# S9, row 33
def test_row_33_a_ticket_of_ringback_is_never_one_of_a_client(tmp_path: Path) -> None:
    """Nor is one signed by HMAC with a published key."""
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(published_jwks([ED, RSA])))
    published = public_keys(file)
    verifier = TicketVerifier("x" * 32, published)
    for client in ("shop", "ringback"):
        for key in (ED, RSA):
            with pytest.raises(InvalidTicketError):
                verifier.verify(issuer(jwk(key)).own(client))
    for key in published_jwks([ED, RSA])["keys"]:
        public = OctKey.import_key(decoded(key.get("x") or key["n"]))
        forged = TicketIssuer(public).issue("shop", lifetime=60)
        with pytest.raises(InvalidTicketError):
            verifier.verify(forged)


def test_a_public_key_cannot_sign() -> None:
    with pytest.raises(PublicSigningKeyError, match="Put the private key first"):
        issuer(pem(ED, private=False) + pem(RSA))


def short_rsa() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        return jwk(RSAKey.generate_key(1024))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "must be keys"),
        ("canary", "must be keys"),
        ('{"kty": "canary"}', "must be keys"),
        ('{"keys": []}', "must be keys"),
        ('{"keys": 5}', "must be keys"),
        ('{"keys": ["canary"]}', "must be keys"),
        ('{"kty": "OKP", "crv": "Ed25519", "x": "canary"}', "must be keys"),
        (pem(ED) + "canary", "must be keys"),
        (ED.as_pem(private=True, password="canary").decode(), "without a password"),
        (pem(ED).replace("MC4", "MC5"), "key 1 must be Ed25519"),
        (pem(ED) + pem(ECKey.generate_key("P-256")), "key 2 must be Ed25519, or RSA"),
        (jwk(OKPKey.generate_key("Ed448")), "key 1 must be Ed25519, or RSA"),
        (jwk(OctKey.import_key("canary" * 6)), "key 1 must be Ed25519, or RSA"),
        (short_rsa(), "2048 to 4096 bits"),
        (jwk(ED, kid="x" * (MAX_KID_LENGTH + 1)), "the kid of key 1 must be a text"),
        (jwk(ED, kid=""), "the kid of key 1 must be a text"),
        (jwk(ED, kid="\ud800"), "the kid of key 1 must be a text"),
        (json.dumps({"keys": [json.loads(jwk(ED)), json.loads(jwk(ED))]}), "the same kid"),
        (jwk(ED, use="enc"), "key 1 must be for signatures with EdDSA"),
        (jwk(ED, alg="Ed25519"), "key 1 must be for signatures with EdDSA"),
        (jwk(RSA, alg="PS256"), "key 1 must be for signatures with RS256"),
        (jwk(ED, key_ops=["verify"]), "key 1 must be for signatures with EdDSA"),
    ],
)
def test_an_unusable_signing_key_is_rejected_and_not_shown(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        signing_keys(text)
    assert "canary" not in str(caught.value)


def test_a_public_key_that_only_verifies_is_published() -> None:
    text = json.dumps(ED.as_dict(private=False) | {"use": "sig", "key_ops": ["verify"]})
    assert published_jwks(signing_keys(text)) == published_jwks([ED])


def test_the_largest_own_ticket_fits_into_a_notification() -> None:
    key = jwk(RSAKey.generate_key(MAX_RSA_BITS), kid="x" * MAX_KID_LENGTH)
    ticket = issuer(key).own("\U0001f600" * 255)
    assert len(ticket) + 64 <= MAX_OWN_TICKET_BYTES


@pytest.mark.parametrize("name", ["Authorization", "content-type", "Host", "webhook-id", "a b", ""])
def test_a_header_with_another_meaning_is_not_for_tickets(name: str) -> None:
    with pytest.raises(ValueError, match="ticket_header"):
        SecuritySettings(ticket_header=name)


# S9
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_finding_a15_the_code_of_the_guide_verifies_notifications() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    guide: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), guide)  # noqa: S102 - our own page
    ringback = issuer(jwk(ED))
    jwks, verify = published_jwks([ED]), guide["verify_ticket"]
    assert verify(ringback.own("shop"), jwks, "shop")
    forged = [
        ringback.own("bank"),
        issuer(jwk(OKPKey.generate_key("Ed25519", {"kid": "ed"}))).own("shop"),
        TicketIssuer(OctKey.import_key(decoded(jwks["keys"][0]["x"]))).own("shop"),
        TicketIssuer(ED).issue("shop", lifetime=60),
        "a.b.c",
        "",
    ]
    assert [verify(ticket, jwks, "shop") for ticket in forged] == [False] * len(forged)
