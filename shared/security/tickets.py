"""Service tickets: JWTs that identify a client to Ringback, or Ringback to a client.

A client's ticket has `aud` ringback, the client id as `sub`, and `exp`. Ringback's own ticket has
`iss` ringback and the client id as `aud`. It has no `sub`, so nobody can use it as a client's.
"""

import math
import re
import unicodedata
import warnings
from collections import OrderedDict
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import Key, KeySet

from shared.clock import Clock, SystemClock
from shared.errors import PermanentError, RingbackError
from shared.security.jwks import ALGORITHMS, public_keys, shared_key, signature_of, signing_keys
from shared.security.settings import SecuritySettings

AUDIENCE: Final = "ringback"
# Client ids of Ringback's own services. They need no ticket, so no ticket can name one.
RESERVED_PREFIX: Final = "ringback."
MAX_CLIENT_ID_LENGTH: Final = 255
# Characters: far longer than any ticket, and still cheap to reject.
MAX_TICKET_LENGTH: Final = 8192
# Seconds that the clock of a client may be ahead (RFC 7519: "some small leeway").
CLOCK_LEEWAY: Final = 60.0
# Clients whose ticket the issuer keeps for the next notification.
CACHE_SIZE: Final = 10_000
# Minimum lifetime of Ringback's own ticket, in seconds. All tiers of quick retries, one after the
# other and each half longer by jitter, take 2 h.
TICKET_LIFETIME: Final = 10_800.0

_NOT_VISIBLE: Final = re.compile("[^ -~]")
_ALL_ALGORITHMS: Final = tuple(name for names in ALGORITHMS.values() for name in names)


class InvalidTicketError(PermanentError):
    """The ticket is not valid. The text says why, without the ticket."""


class PublicSigningKeyError(RingbackError):
    """The key that must sign is public."""

    exit_code = 2


class TicketVerifier:
    """Checks clients' tickets with an HS256 key, a set of public keys, or both.

    Without any key, every ticket is invalid.
    """

    def __init__(
        self, key: str | None, public: KeySet | None = None, *, clock: Clock | None = None
    ) -> None:
        self._keys = ([shared_key(key)] if key else []) + list(public or ())
        self._clock = clock or SystemClock()

    @classmethod
    def of(cls, settings: SecuritySettings) -> "TicketVerifier":
        """Return the verifier for `ticket_key` and `ticket_jwks_file`."""
        key, file = settings.ticket_key, settings.ticket_jwks_file
        return cls(key.get_secret_value() if key else None, public_keys(file) if file else None)

    def verify(self, ticket: str) -> str:
        """Return the client id in a client's ticket.

        Raises:
            InvalidTicketError: its signature, audience, expiry or format is invalid.
        """
        if len(ticket) > MAX_TICKET_LENGTH:
            raise InvalidTicketError(f"the ticket is longer than {MAX_TICKET_LENGTH} characters")
        try:
            with warnings.catch_warnings():
                # RFC 9864 renames EdDSA to Ed25519. Most issuers do not use the new name yet.
                warnings.simplefilter("ignore", SecurityWarning)
                claims = jwt.decode(ticket, self._key_for, algorithms=_ALL_ALGORITHMS).claims
        except (JoseError, ValueError, RecursionError) as error:
            raise InvalidTicketError(f"the ticket is not valid: {_reason(error)}") from None
        self._check_time(claims)
        audience = claims.get("aud")
        if AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
            raise InvalidTicketError(f"the ticket is not for {AUDIENCE}: aud must be {AUDIENCE!r}")
        return client_id(claims.get("sub"))

    def _key_for(self, ticket: Any) -> Key:
        """Return the one configured key that matches the ticket's header."""
        header = ticket.headers()
        algorithm, name = header.get("alg"), header.get("kid")
        keys = [key for key in self._keys if algorithm in ALGORITHMS[type(key)]]
        if len(keys) > 1:
            keys = [key for key in keys if key.kid == name]
        if not keys:
            raise ValueError("no configured key matches its alg and kid")
        return keys[0]

    def _check_time(self, claims: dict[str, Any]) -> None:
        now = self._clock.now()
        if "exp" not in claims:
            raise InvalidTicketError("the ticket has no exp")
        if _timestamp(claims, "exp") <= now:
            raise InvalidTicketError("the ticket is expired")
        if "nbf" in claims and _timestamp(claims, "nbf") > now + CLOCK_LEEWAY:
            raise InvalidTicketError("the ticket is not valid yet")


class TicketIssuer:
    """Signs Ringback's own tickets, and clients' tickets for development."""

    def __init__(self, key: Key, *, clock: Clock | None = None) -> None:
        self._key = key
        self._header = {"alg": signature_of(key)} | ({"kid": key.kid} if key.kid else {})
        self._clock = clock or SystemClock()
        self._own: OrderedDict[str, tuple[float, str]] = OrderedDict()

    @classmethod
    def of(cls, settings: SecuritySettings) -> "TicketIssuer | None":
        """Return the issuer for `ticket_signing_key`, otherwise for `ticket_key`, if one is set.

        Raises:
            PublicSigningKeyError: the first signing key is public.
        """
        if settings.ticket_signing_key is not None:
            key = signing_keys(settings.ticket_signing_key.get_secret_value())[0]
            if not key.is_private:
                raise PublicSigningKeyError(
                    "Cannot sign tickets: the first key in RINGBACK_TICKET_SIGNING_KEY is public."
                    " Put the private key first."
                )
            return cls(key)
        if settings.ticket_key is not None:
            return cls(shared_key(settings.ticket_key.get_secret_value()))
        return None

    def issue(self, client: str, *, lifetime: float) -> str:
        """Return a ticket of this client, valid for `lifetime` seconds.

        Raises:
            InvalidTicketError: the client id is not valid.
        """
        return self._sign({"sub": client_id(client), "aud": AUDIENCE}, lifetime)

    def own(self, client: str) -> str:
        """Return Ringback's ticket for this client, valid for TICKET_LIFETIME at least."""
        now = self._clock.now()
        expires_at, ticket = self._own.pop(client, (0.0, ""))
        if expires_at - now < TICKET_LIFETIME:
            expires_at = now + 2 * TICKET_LIFETIME
            ticket = self._sign({"iss": AUDIENCE, "aud": client}, 2 * TICKET_LIFETIME)
        self._own[client] = expires_at, ticket
        if len(self._own) > CACHE_SIZE:
            self._own.popitem(last=False)
        return ticket

    def _sign(self, claims: dict[str, Any], lifetime: float) -> str:
        now = self._clock.now()
        times = {"iat": int(now), "exp": math.ceil(now + lifetime)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # see `TicketVerifier.verify`
            return jwt.encode(
                self._header, claims | times, self._key, algorithms=[self._header["alg"]]
            )


def client_id(value: Any) -> str:
    """Return a valid client id: 1 to 255 characters, without control characters, and not reserved.

    Raises:
        InvalidTicketError: the value is not a valid client id.
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
    if is_reserved(value):
        raise InvalidTicketError(
            f"the ticket's sub must not begin with {RESERVED_PREFIX}: it names a service of"
            " Ringback"
        )
    return value


def is_reserved(client: str) -> bool:
    """Return whether a client id is that of a service of Ringback."""
    return client.startswith(RESERVED_PREFIX)


def _timestamp(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -math.inf < value < math.inf  # not math.isfinite: it raises for huge integers
    ):
        raise InvalidTicketError(f"the ticket's {name} must be a number of seconds")
    return value


def _reason(error: BaseException) -> str:
    """Return a short description in visible ASCII, as it becomes part of an HTTP header."""
    if isinstance(error, JoseError):
        # It may quote a value of the ticket's header, with any characters.
        return _NOT_VISIBLE.sub("?", error.description or error.error)
    return str(error) if type(error) is ValueError else "it is not a JWT"
