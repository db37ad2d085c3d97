"""The keys that verify clients' tickets, and those that sign Ringback's own."""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, KeySet, OctKey, OKPKey, RSAKey, import_key

# NIST SP 800-131A has forbidden shorter RSA keys since 2014.
MIN_RSA_BITS: Final = 2048
# A signature with a longer one takes more than 5 ms, in which the scheduler does nothing else.
MAX_RSA_BITS: Final = 4096
# Characters. The kid is a part of every ticket.
MAX_KID_LENGTH: Final = 128

# The algorithms of each key type. The key decides the algorithm, never the ticket.
ALGORITHMS: Final[dict[type[Key], tuple[str, ...]]] = {
    OctKey: ("HS256",),
    RSAKey: ("RS256",),
    ECKey: ("ES256",),
    OKPKey: ("EdDSA", "Ed25519"),
}

_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)
# Public members of a JWK. Others could be private, or be meant for another use.
_PUBLIC_MEMBERS: Final = ("kty", "crv", "x", "n", "e", "kid")


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


def signing_keys(text: str) -> tuple[Key, ...]:
    """Return the keys in PEM blocks, in a JWK or in a JWKS: Ed25519 (EdDSA) or RSA (RS256).

    A key without a kid gets its thumbprint (RFC 7638). Public keys are allowed.

    Raises:
        ValueError: a key is not valid; never with its text.
    """
    # Variables in files often have the line breaks of a PEM block in this form.
    text = text.replace("\\n", "\n").strip()
    try:
        if text.startswith("{"):
            jwk = json.loads(text)
            keys = _import_keys(jwk if "keys" in jwk else {"keys": [jwk]})
        else:
            keys = [_import_pem(block[0]) for block in _PEM.finditer(text)]
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
        keys = []
    if not keys or (not text.startswith("{") and _PEM.sub("", text).strip()):
        raise ValueError("must be keys without a password, as PEM, JWK or JWKS")
    for number, key in enumerate(keys, start=1):
        if not _can_sign(key):
            raise ValueError(
                f"key {number} must be Ed25519, or RSA with {MIN_RSA_BITS} to {MAX_RSA_BITS} bits"
            )
        key.ensure_kid()
        kid = key.kid
        if not (isinstance(kid, str) and 1 <= len(kid) <= MAX_KID_LENGTH and kid.isprintable()):
            raise ValueError(
                f"the kid of key {number} must be a text of 1 to {MAX_KID_LENGTH} visible"
                " characters"
            )
        if not _is_for_signatures(key):
            raise ValueError(
                f"key {number} must be for signatures with {signature_of(key)}: correct or remove"
                " its use, alg and key_ops"
            )
    if len({key.kid for key in keys}) < len(keys):
        raise ValueError("two keys have the same kid")
    return tuple(keys)


def new_signing_key() -> str:
    """Return a new Ed25519 key as a JWK in one line."""
    key = OKPKey.generate_key("Ed25519", auto_kid=True)
    return json.dumps(key.as_dict(private=True) | {"use": "sig", "alg": signature_of(key)})


def signature_of(key: Key) -> str:
    """Return the algorithm with which a key signs Ringback's tickets."""
    return ALGORITHMS[type(key)][0]


def published_jwks(keys: Sequence[Key]) -> dict[str, Any]:
    """Return the public parts of keys as a JWKS."""
    return {
        "keys": [
            {
                name: value
                for name in _PUBLIC_MEMBERS
                if (value := key.as_dict(private=False).get(name))
            }
            | {"use": "sig", "alg": signature_of(key)}
            for key in keys
        ]
    }


def shared_key(secret: str) -> OctKey:
    """Return the HS256 key that is this text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # `ringback doctor` reports a short key
        return OctKey.import_key(secret)


def _import_pem(block: str) -> Key:
    """Return the key in a PEM block, or a symmetric key if the block is not valid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # `_can_sign` rejects other types
        return import_key(block)


def _can_sign(key: Key) -> bool:
    match key:
        case RSAKey():
            return MIN_RSA_BITS <= key.raw_value.key_size <= MAX_RSA_BITS
        case OKPKey():
            return key.curve_name == "Ed25519"
        case _:
            return False


def _is_for_signatures(key: Key) -> bool:
    """Return whether the optional members of a JWK allow the algorithm of `signature_of`."""
    try:
        key.check_use("sig")
        key.check_alg(signature_of(key))
        key.check_key_op("sign" if key.is_private else "verify")
    except JoseError:
        return False
    return True


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
