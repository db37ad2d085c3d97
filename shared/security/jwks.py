"""Public keys that check service tickets, from a JWKS file."""

import json
import warnings
from pathlib import Path
from typing import Any, Final

from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, KeySet, OctKey, OKPKey, RSAKey

# NIST SP 800-131A has forbidden shorter RSA keys since 2014.
MIN_RSA_BITS: Final = 2048

# The algorithms of each key type. The key decides the algorithm, never the ticket.
ALGORITHMS: Final[dict[type[Key], tuple[str, ...]]] = {
    OctKey: ("HS256",),
    RSAKey: ("RS256",),
    ECKey: ("ES256",),
    OKPKey: ("EdDSA", "Ed25519"),
}


def public_keys(file: Path) -> KeySet:
    """Return the public keys in a JWKS file: RSA (RS256), P-256 (ES256), Ed25519 (EdDSA).

    Raises:
        ValueError: the file cannot be read or is not valid; never with its content.
    """
    try:
        keys = _import_keys(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f'{file} is not a valid JWKS: {{"keys": [{{"kty": …}}, …]}}') from None
    for number, key in enumerate(keys, start=1):
        if fault := _fault(key):
            raise ValueError(f"{file}, key {number}: {fault}")
    if len({key.kid for key in keys}) < len(keys):
        raise ValueError(f"{file}: two keys have the same kid")
    return KeySet(keys)


def _import_keys(jwks: Any) -> list[Key]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # `_fault` rejects short keys
        return KeySet.import_key_set(jwks).keys


def _fault(key: Key) -> str | None:
    """Return why a key of a JWKS cannot check tickets, or None if it can."""
    if isinstance(key, OctKey):
        return "a JWKS must not contain a symmetric key; set RINGBACK_TICKET_KEY instead"
    if key.is_private:
        return "this is a private key; leave only its public part"
    match key:
        case RSAKey():
            allowed = key.raw_value.key_size >= MIN_RSA_BITS
        case ECKey():
            allowed = key.curve_name == "P-256"
        case OKPKey():
            allowed = key.curve_name == "Ed25519"
        case _:
            allowed = False
    if not allowed:
        return f"it must be RSA with {MIN_RSA_BITS} bits or more, P-256, or Ed25519"
    algorithm = key.get("alg")
    if algorithm is not None and algorithm not in ALGORITHMS[type(key)]:
        return f"its alg must be {' or '.join(ALGORITHMS[type(key)])}"
    return None
