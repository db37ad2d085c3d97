"""The users, codes and tokens of the sandbox's OpenID provider, all in memory."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

V = TypeVar("V")

# Seconds for which a code and a token are valid.
CODE_LIFETIME = 60.0
TOKEN_LIFETIME = 300.0
# Codes and access tokens in memory; the oldest are forgotten.
MAX_STORED = 1000

# What can be wrong with a sign-in, to show how an application responds to it.
Fault = Literal[
    "nonce",
    "audience",
    "issuer",
    "algorithm",
    "unsigned",
    "signature",
    "key",
    "expired",
    "no_role",
    "unavailable",
]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who can sign in, and the role that the claim `roles` contains."""

    id: str
    name: str
    role: str

    def claims(self) -> dict[str, Any]:
        """Return the claims about the person, in the ID token and at the userinfo endpoint."""
        return {
            "sub": f"sandbox-{self.id}",
            "name": self.name,
            "preferred_username": self.id,
            "email": f"{self.id}@sandbox.invalid",
            "email_verified": True,
            "roles": [self.role],
        }


PEOPLE = {
    person.id: person
    for person in (
        Person("vera", "Vera", "viewer"),
        Person("omar", "Omar", "operator"),
        Person("ada", "Ada", "admin"),
    )
}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a code stands for."""

    person: Person
    client_id: str
    redirect_uri: str
    challenge: str
    nonce: str | None
    expires_at: float


class Tokens:
    """The codes, the signing key and the access tokens of one provider.

    `fault` makes the ID tokens wrong, until it is None again.
    """

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self._grants: OrderedDict[str, Grant] = OrderedDict()
        self._people: OrderedDict[str, tuple[Person, float]] = OrderedDict()
        self._key: ECKey | None = None

    def jwks(self) -> dict[str, Any]:
        """Return the key set of the provider: its only key."""
        return {"keys": [self._signing_key().as_dict(private=False, use="sig", alg="ES256")]}

    def rotate(self) -> None:
        """Replace the signing key. Tokens of the old one can no longer be verified."""
        self._key = _new_key()

    def code(self, grant: Grant) -> str:
        """Return a code that can be redeemed once."""
        return _store(self._grants, grant)

    def redeem(self, code: str, client_id: str, redirect_uri: str, verifier: str) -> Grant | None:
        """Return what a code stands for, or None if it is not valid. A code works once."""
        grant = self._grants.pop(code, None)
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if (
            grant is None
            or grant.expires_at < time.time()
            or (grant.client_id, grant.redirect_uri) != (client_id, redirect_uri)
            or not hmac.compare_digest(grant.challenge.encode(), challenge.encode())
        ):
            return None
        return grant

    def access_token(self, person: Person) -> str:
        """Return a token for the userinfo endpoint."""
        return _store(self._people, (person, time.time() + TOKEN_LIFETIME))

    def person_of(self, access_token: str) -> Person | None:
        """Return the person of an access token, or None if it is not valid."""
        person, expires_at = self._people.get(access_token, (None, 0.0))
        return person if expires_at > time.time() else None

    def claims_of(self, person: Person) -> dict[str, Any]:
        """Return the claims about a person, without a role if that is the fault."""
        claims = person.claims()
        if self.fault == "no_role":
            claims["roles"] = []
        return claims

    def id_token(self, issuer: str, grant: Grant, secret: str) -> str:
        """Return the ID token of a grant, with the configured fault."""
        now = int(time.time())
        claims = self.claims_of(grant.person) | {
            "iss": issuer,
            "aud": grant.client_id,
            "iat": now,
            "exp": now + int(TOKEN_LIFETIME),
            "nonce": grant.nonce,
        }
        match self.fault:
            case "nonce":
                claims["nonce"] = secrets.token_urlsafe()
            case "audience":
                claims["aud"] = "another-application"
            case "issuer":
                claims["iss"] = f"{issuer}/other"
            case "expired":
                claims |= {"iat": now - 7200, "exp": now - 3600}
            case "algorithm":
                # A classic attack: the verifier takes something that it knows for the key.
                key = OctKey.import_key(secret.ljust(32, "="))
                return jwt.encode({"alg": "HS256"}, claims, key, algorithms=["HS256"])
            case "unsigned":
                return f"{_part({'alg': 'none', 'typ': 'JWT'})}.{_part(claims)}."
        return self._signed(claims)

    def _signed(self, claims: Mapping[str, Any]) -> str:
        published = self._signing_key()
        key = _new_key() if self.fault in ("key", "signature") else published
        kid = key.kid if self.fault == "key" else published.kid
        header = {"alg": "ES256", "kid": kid}
        return jwt.encode(header, dict(claims), key, algorithms=["ES256"])

    def _signing_key(self) -> ECKey:
        if self._key is None:
            self._key = _new_key()
        return self._key


def _new_key() -> ECKey:
    return ECKey.generate_key("P-256", auto_kid=True)


def _store(stored: OrderedDict[str, V], value: V) -> str:
    name = secrets.token_urlsafe(24)
    stored[name] = value
    if len(stored) > MAX_STORED:
        stored.popitem(last=False)
    return name


def _part(content: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")
