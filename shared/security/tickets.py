"""Service tickets: JWTs that say which client calls us, and ours that say we call a client.

A caller's ticket has `aud` ringback, `sub` the client id, and `exp`. Ringback's own has `iss`
ringback, `aud` the client id, and no `sub`, so that it opens no door of ours.
"""

import json
import math
import unicodedata
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, KeySet, OctKey, OKPKey, RSAKey

from shared.clock import Clock, SystemClock
from shared.errors import PermanentError
from shared.settings import Settings

AUDIENCE: Final = "ringback"
MAX_CLIENT_ID_LENGTH: Final = 255
# Characters; far above any ticket, far below what would cost us something to look at.
MAX_TICKET_LENGTH: Final = 8192
# Bytes; NIST SP 800-131A has forbidden shorter RSA keys since 2014.
MIN_RSA_BITS: Final = 2048
# Our own tickets are kept for so many clients.
CACHE_SIZE: Final = 10_000
# Seconds that an own ticket is good for at least. Every tier of quick retries, one after the other
# and each half longer by jitter, takes 2 h.
TICKET_LIFETIME: Final = 10_800.0

# The algorithms that a key is good for: its type says, never the ticket.
_OF_KEY: Final[dict[type[Key], tuple[str, ...]]] = {
    OctKey: ("HS256",),
    RSAKey: ("RS256",),
    ECKey: ("ES256",),
    OKPKey: ("EdDSA", "Ed25519"),
}
_ALGORITHMS: Final = tuple(name for names in _OF_KEY.values() for name in names)


class InvalidTicketError(PermanentError):
    """The ticket proves nothing; says why, without the ticket."""


class MissingTicketKeyError(PermanentError):
    """Nothing is configured that could check, or sign, a ticket."""


class Tickets:
    """Checks callers' tickets with an HS256 key, a set of public keys, or both; signs with the key.

    With neither, every ticket is a bad one.
    """

    def __init__(
        self, key: str | None, public: KeySet | None = None, *, clock: Clock | None = None
    ) -> None:
        self._secret = _secret(key) if key else None
        self._public = tuple(public or ())
        self._clock = clock or SystemClock()
        self._own: OrderedDict[str, tuple[float, str]] = OrderedDict()

    @classmethod
    def of(cls, settings: Settings) -> "Tickets":
        """As configured: `ticket_key`, `ticket_jwks_file`."""
        key, file = settings.ticket_key, settings.ticket_jwks_file
        return cls(key.get_secret_value() if key else None, public_keys(file) if file else None)

    @property
    def can_sign(self) -> bool:
        """Whether there is a key to sign with."""
        return self._secret is not None

    def verify(self, ticket: str) -> str:
        """The client id in a caller's ticket.

        Raises:
            InvalidTicketError: its signature, audience, expiry or form is invalid.
        """
        if len(ticket) > MAX_TICKET_LENGTH:
            raise InvalidTicketError(f"the ticket is longer than {MAX_TICKET_LENGTH} characters")
        try:
            with warnings.catch_warnings():
                # Of EdDSA: RFC 9864 would have it called Ed25519. Most issuers do not yet.
                warnings.simplefilter("ignore", SecurityWarning)
                claims = jwt.decode(ticket, self._key_for, algorithms=_ALGORITHMS).claims
        except (JoseError, ValueError, RecursionError) as error:
            raise InvalidTicketError(f"the ticket is not valid: {_reason(error)}") from None
        self._check_time(claims)
        audience = claims.get("aud")
        if AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
            raise InvalidTicketError(f"the ticket is not for {AUDIENCE}: aud must be {AUDIENCE!r}")
        return client_id(claims.get("sub"))

    def issue(self, client: str, *, lifetime: float) -> str:
        """A caller's ticket for this client, good for so many seconds: for development.

        Raises:
            MissingTicketKeyError: there is no key to sign with.
            InvalidTicketError: the client id can't be one.
        """
        return self._signed({"sub": client_id(client), "aud": AUDIENCE}, lifetime)

    def own(self, client: str) -> str:
        """Ringback's ticket for this client, good for TICKET_LIFETIME at least.

        Raises:
            MissingTicketKeyError: there is no key to sign with.
        """
        now = self._clock.now()
        until, ticket = self._own.pop(client, (0.0, ""))
        if until - now < TICKET_LIFETIME:
            until = now + 2 * TICKET_LIFETIME
            ticket = self._signed({"iss": AUDIENCE, "aud": client}, 2 * TICKET_LIFETIME)
        self._own[client] = until, ticket
        if len(self._own) > CACHE_SIZE:
            self._own.popitem(last=False)
        return ticket

    def _signed(self, claims: dict[str, Any], lifetime: float) -> str:
        if self._secret is None:
            raise MissingTicketKeyError(
                "there is no key to sign tickets with: set RINGBACK_TICKET_KEY"
            )
        now = self._clock.now()
        times = {"iat": int(now), "exp": math.ceil(now + lifetime)}
        return jwt.encode({"alg": "HS256"}, claims | times, self._secret, algorithms=["HS256"])

    def _key_for(self, ticket: Any) -> Key:
        """The one key of ours that the ticket's header fits."""
        header = ticket.headers()
        algorithm, name = header.get("alg"), header.get("kid")
        keys = [] if self._secret is None else [self._secret]
        fit = [key for key in (*keys, *self._public) if algorithm in _OF_KEY[type(key)]]
        if len(fit) > 1:
            fit = [key for key in fit if key.kid == name]
        if not fit:
            raise ValueError("no configured key fits its alg and kid")
        return fit[0]

    def _check_time(self, claims: dict[str, Any]) -> None:
        now = self._clock.now()
        if "exp" not in claims:
            raise InvalidTicketError("the ticket has no exp")
        if _moment(claims, "exp") <= now:
            raise InvalidTicketError("the ticket is expired")
        if "nbf" in claims and _moment(claims, "nbf") > now:
            raise InvalidTicketError("the ticket is not valid yet")


def client_id(value: Any) -> str:
    """A client id as it may stand in a ticket: 1 to 255 characters, none a control character.

    Raises:
        InvalidTicketError: it can't be one.
    """
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= MAX_CLIENT_ID_LENGTH
        or any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
    ):
        raise InvalidTicketError(
            f"the ticket's sub must be a client id: 1 to {MAX_CLIENT_ID_LENGTH} characters,"
            " no control characters"
        )
    return value


def public_keys(file: Path) -> KeySet:
    """The public keys in a JWKS file: RSA (RS256), P-256 (ES256), Ed25519 (EdDSA).

    Raises:
        ValueError: the file can't be read, or holds something else; never with its content.
    """
    try:
        keys = _imported(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from None
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f'{file} is no JWKS: {{"keys": [{{"kty": …}}, …]}}') from None
    for number, key in enumerate(keys, start=1):
        if fault := _unfit(key):
            raise ValueError(f"{file}, key {number}: {fault}")
    if len({key.kid for key in keys}) < len(keys):
        raise ValueError(f"{file}: two keys have the same kid")
    return KeySet(keys)


def _imported(jwks: Any) -> list[Key]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # a short key is refused below
        return KeySet.import_key_set(jwks).keys


def _unfit(key: Key) -> str | None:
    """Why a key of a JWKS can't check tickets."""
    if isinstance(key, OctKey):
        return "a symmetric key does not belong into a JWKS; set RINGBACK_TICKET_KEY"
    if key.is_private:
        return "this is a private key; leave only its public part"
    match key:
        case RSAKey():
            fit = key.raw_value.key_size >= MIN_RSA_BITS
        case ECKey():
            fit = key.curve_name == "P-256"
        case OKPKey():
            fit = key.curve_name == "Ed25519"
        case _:
            fit = False
    if not fit:
        return f"it must be RSA with {MIN_RSA_BITS} bits or more, P-256, or Ed25519"
    algorithm = key.get("alg")
    if algorithm is not None and algorithm not in _OF_KEY[type(key)]:
        return f"its alg must be {' or '.join(_OF_KEY[type(key)])}"
    return None


def _secret(key: str) -> OctKey:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # `ringback doctor` says it is short
        return OctKey.import_key(key)


def _moment(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidTicketError(f"the ticket's {name} must be a number of seconds")
    return value


def _reason(error: BaseException) -> str:
    """A few words; never the ticket."""
    if isinstance(error, JoseError):
        return error.description or error.error
    return str(error) if type(error) is ValueError else "it is no JWT"
