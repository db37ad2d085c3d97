"""The settings of service tickets and of encryption, for the services that use them."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from shared.security.encryption import parse_keys
from shared.security.jwks import public_keys
from shared.settings import EMPTY_IS_NONE, TableSettings


def _ticket_key(value: SecretStr) -> SecretStr:
    if value.get_secret_value().startswith(("-----BEGIN ", "ssh-")):
        raise ValueError("must be a secret that both sides know; put public keys into a JWKS file")
    return value


def _jwks_file(value: Path) -> Path:
    public_keys(value)
    return value


def _secrets_key(value: SecretStr) -> SecretStr:
    parse_keys(value.get_secret_value())
    return value


class SecuritySettings(TableSettings, env_prefix="RINGBACK_SECURITY_"):
    """The table `[security]` of ringback.toml."""

    ticket_key: Annotated[
        Annotated[SecretStr, AfterValidator(_ticket_key)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        validation_alias="RINGBACK_TICKET_KEY",
        description="Key that verifies clients' service tickets and signs Ringback's own (HS256),"
        " at"
        " least 32 random characters.",
        examples=["a-secret-of-32-random-characters"],
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
