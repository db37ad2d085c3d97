"""Checks ID tokens (OpenID Connect Core 3.1.3.7). Pure: the caller fetches the keys."""

import hmac
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jws, jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey, import_key

from services.console.sign_in.errors import Reason, SignInError

# The algorithms of each key type. HS256 is missing: the secret of the client would be the key.
ALGORITHMS: Final[dict[type[Key], tuple[str, ...]]] = {
    RSAKey: ("RS256",),
    ECKey: ("ES256",),
    OKPKey: ("EdDSA", "Ed25519"),
}
_ALL_ALGORITHMS: Final = tuple(name for names in ALGORITHMS.values() for name in names)
# NIST SP 800-131A has forbidden shorter RSA keys since 2014.
MIN_RSA_BITS: Final = 2048
# Seconds by which the clocks of the provider and of the console may differ.
LEEWAY: Final = 60.0
# Characters. A token with hundreds of groups has 20,000.
MAX_TOKEN_LENGTH: Final = 65_536


class UnknownKeyError(SignInError):
    """No key fits the token. The provider may have rotated its keys since they were fetched."""

    def __init__(self) -> None:
        super().__init__(Reason.KEY, "no key of the provider fits the alg and kid of the ID token")


@dataclass(frozen=True, slots=True)
class Expected:
    """What an ID token must contain."""

    issuer: str
    client_id: str
    nonce: str


def provider_keys(jwks: Any) -> list[Key]:
    """Return the keys of a JWKS that can verify an ID token; others are left out.

    Raises:
        ValueError: the value is not a JWKS.
    """
    if not isinstance(jwks, Mapping) or not isinstance(jwks.get("keys"), list):
        raise ValueError("the key set of the provider is not a JWKS")  # noqa: TRY004 - it is data
    keys = [_import(each) for each in jwks["keys"]]
    return [key for key in keys if key is not None and _usable(key)]


def verified_claims(
    token: str, keys: Iterable[Key], expected: Expected, now: float
) -> Mapping[str, Any]:
    """Return the claims of an ID token after checking its signature and every claim.

    Raises:
        UnknownKeyError: no key fits the token.
        SignInError: the token is not valid, or not for this sign-in.
    """
    key = _key_for(_header(token), list(keys))
    try:
        with _without_warnings():
            claims = jwt.decode(token, key, algorithms=_ALL_ALGORITHMS).claims
    except (JoseError, ValueError, RecursionError):
        raise SignInError(Reason.SIGNATURE, "the signature does not match") from None
    _check_claims(claims, expected, now)
    return claims


def _header(token: str) -> Mapping[str, Any]:
    if len(token) > MAX_TOKEN_LENGTH:
        raise SignInError(Reason.TOKEN, f"it has more than {MAX_TOKEN_LENGTH} characters")
    try:
        header: Mapping[str, Any] = jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError, RecursionError):
        raise SignInError(Reason.TOKEN, "it is not a signed JWT") from None
    if header.get("alg") not in _ALL_ALGORITHMS:
        allowed = ", ".join(_ALL_ALGORITHMS)
        raise SignInError(Reason.ALGORITHM, f"the algorithm is not one of {allowed}")
    return header


def _key_for(header: Mapping[str, Any], keys: Sequence[Key]) -> Key:
    """Return the one key that fits; a token without a kid needs a set with a single such key."""
    fitting = [key for key in keys if header["alg"] in ALGORITHMS[type(key)]]
    if "kid" in header:
        fitting = [key for key in fitting if key.kid == header["kid"]]
    if len(fitting) != 1:
        raise UnknownKeyError
    return fitting[0]


def _check_claims(claims: Mapping[str, Any], expected: Expected, now: float) -> None:
    if claims.get("iss") != expected.issuer:
        raise SignInError(Reason.ISSUER, "iss is not the configured issuer")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if expected.client_id not in audiences:
        raise SignInError(Reason.AUDIENCE, "aud does not contain the client id of the console")
    # A token for several applications names the one that requested it.
    if claims.get("azp", None if len(audiences) > 1 else expected.client_id) != expected.client_id:
        raise SignInError(Reason.AUDIENCE, "azp is not the client id of the console")
    if _time(claims, "exp") <= now - LEEWAY:
        raise SignInError(Reason.EXPIRED, "exp is in the past")
    for name in ("iat", "nbf"):
        if (name == "iat" or name in claims) and _time(claims, name) > now + LEEWAY:
            raise SignInError(Reason.EXPIRED, f"{name} is in the future")
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(
        nonce.encode("utf-8", "replace"), expected.nonce.encode()
    ):
        raise SignInError(Reason.NONCE, "nonce is missing or different")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise SignInError(Reason.TOKEN, "sub is missing")


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -math.inf < value < math.inf  # not math.isfinite: it raises for huge integers
    ):
        raise SignInError(Reason.TOKEN, f"{name} is missing or not a number of seconds")
    return value


def _import(jwk: Any) -> Key | None:
    """Return a key of a JWKS, or None if its type is not known here."""
    try:
        with _without_warnings():
            return import_key(jwk)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _usable(key: Key) -> bool:
    match key:
        case OctKey():
            return False
        case RSAKey():
            allowed = key.raw_value.key_size >= MIN_RSA_BITS
        case ECKey():
            allowed = key.curve_name == "P-256"
        case OKPKey():
            allowed = key.curve_name == "Ed25519"
        case _:
            return False
    algorithm = key.get("alg")
    return (
        allowed
        and key.get("use") in (None, "sig")
        and (algorithm is None or algorithm in ALGORITHMS[type(key)])
    )


def _without_warnings() -> "warnings.catch_warnings[None]":
    # RFC 9864 renames EdDSA to Ed25519. Most providers do not use the new name yet.
    return warnings.catch_warnings(action="ignore", category=SecurityWarning)
