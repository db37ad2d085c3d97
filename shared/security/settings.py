"""The settings of service tickets and of encryption, for the services that use them.

Every process imports this module, to know all variables. So it imports the libraries of
cryptography, which take 9 MB, only where one of the settings is set.
"""

from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import NoDecode

from shared.settings import COMMA_SEPARATED, EMPTY_IS_NONE, TableSettings

# Beginnings of headers that requests or notifications use for something else, in lower case.
_RESERVED_HEADERS: Final = (
    "authorization",
    "connection",
    "content-",
    "host",
    "transfer-encoding",
    "user-agent",
    "webhook-",
    "x-ringback-",
    "x-signature",
)
# RFC 8410, 10.3: not secret.
_EXAMPLE_KEY: Final = (
    "-----BEGIN PRIVATE KEY-----\n"
    "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n"
    "-----END PRIVATE KEY-----"
)


def _ticket_key(value: SecretStr) -> SecretStr:
    if value.get_secret_value().startswith(("-----BEGIN ", "ssh-", "{")):
        raise ValueError("must be a secret that both sides know; put public keys into a JWKS file")
    return value


def _signing_key(value: SecretStr) -> SecretStr:
    from shared.security.jwks import signing_keys  # noqa: PLC0415

    signing_keys(value.get_secret_value())
    return value


def _header_name(value: str) -> str:
    if value.lower().startswith(_RESERVED_HEADERS):
        raise ValueError("is a header with another meaning")
    return value


def _jwks_file(value: Path) -> Path:
    from shared.security.jwks import public_keys  # noqa: PLC0415

    public_keys(value)
    return value


def _secrets_key(value: SecretStr) -> SecretStr:
    from shared.security.encryption import parse_keys  # noqa: PLC0415

    parse_keys(value.get_secret_value())
    return value


class SecuritySettings(TableSettings, env_prefix="RINGBACK_SECURITY_"):
    """The table `[security]` of ringback.toml."""

    ticket_key: Annotated[
        Annotated[SecretStr, AfterValidator(_ticket_key)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        validation_alias="RINGBACK_TICKET_KEY",
        description="Key that verifies clients' service tickets (HS256), at least 32 random"
        " characters. Without RINGBACK_TICKET_SIGNING_KEY, it also signs Ringback's own.",
        examples=["a-secret-of-32-random-characters"],
    )
    ticket_signing_key: Annotated[
        Annotated[SecretStr, AfterValidator(_signing_key)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        validation_alias="RINGBACK_TICKET_SIGNING_KEY",
        description="Ed25519 or RSA keys as PEM, JWK or JWKS (`ringback keys new`). The first signs"
        " Ringback's tickets; the public parts of all are at /.well-known/jwks.json.",
        examples=[_EXAMPLE_KEY],
    )
    ticket_header: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9-]{1,64}$"),
        AfterValidator(_header_name),
    ] = Field(
        default="X-Service-Ticket",
        validation_alias="RINGBACK_TICKET_HEADER",
        description="Header of service tickets, in requests, AMQP messages and notifications.",
    )
    ticket_jwks_file: Annotated[
        Annotated[Path, AfterValidator(_jwks_file)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        validation_alias="RINGBACK_TICKET_JWKS_FILE",
        description="JWKS file of public keys that also verify clients' tickets (RS256, ES256,"
        " EdDSA).",
        examples=["/etc/ringback/jwks.json"],
    )
    secrets_key: Annotated[
        Annotated[SecretStr, AfterValidator(_secrets_key)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        validation_alias="RINGBACK_SECRETS_KEY",
        description="Key that encrypts secrets in the database, 32 bytes in base64. Separate"
        " several"
        " keys by commas: the first encrypts, all decrypt.",
        examples=["MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="],
    )
    operators: Annotated[tuple[str, ...], NoDecode, COMMA_SEPARATED] = Field(
        default=(),
        validation_alias="RINGBACK_OPERATORS",
        description="Client ids of operators. In the journal they see all clients, and they may"
        " move dead letters and pause targets. Default: none.",
        examples=[["operator"]],
    )
