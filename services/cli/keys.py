"""`ringback keys`: keys of service tickets. Also the keys for development of `ringback up`."""

import base64
import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from services.cli.output import echo
from shared.process.configuration import configured_table
from shared.security.encryption import KEY_BYTES
from shared.security.jwks import new_signing_key, published_jwks, signing_keys
from shared.security.settings import SecuritySettings
from shared.settings import variable_of

_CREATE: Final[dict[str, Callable[[], str]]] = {
    "ticket_signing_key": new_signing_key,
    "ticket_key": lambda: secrets.token_urlsafe(KEY_BYTES),
    "secrets_key": lambda: base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode(),
}


@click.group
def keys() -> None:
    """Create and show the keys that sign Ringback's service tickets."""


@keys.command
def new() -> None:
    """Print a new Ed25519 key for RINGBACK_TICKET_SIGNING_KEY, as a JWK.

    \b
    Example:
      ringback keys new > signing-key.json
      export RINGBACK_TICKET_SIGNING_KEY="$(cat signing-key.json)"
    """
    echo(new_signing_key())


@keys.command
def jwks() -> None:
    """Print the public parts of RINGBACK_TICKET_SIGNING_KEY, as a JWKS.

    The gateway publishes them at /.well-known/jwks.json. Receivers verify the tickets of
    notifications with them.

    \b
    Example:
      ringback keys jwks > jwks.json
    """
    key = configured_table(SecuritySettings).ticket_signing_key
    if key is None:
        raise click.ClickException(
            "Cannot show the public keys: RINGBACK_TICKET_SIGNING_KEY is not set. Create a key with"
            " `ringback keys new`."
        )
    echo(json.dumps(published_jwks(signing_keys(key.get_secret_value()))))


def development_keys(settings: SecuritySettings, directory: Path) -> dict[str, str]:
    """Return the variables of the keys that are not configured, from files in `directory`."""
    no_ticket_key = settings.ticket_key is None and settings.ticket_jwks_file is None
    missing = {
        "ticket_signing_key": no_ticket_key and settings.ticket_signing_key is None,
        "ticket_key": no_ticket_key,
        "secrets_key": settings.secrets_key is None,
    }
    return {
        variable_of(SecuritySettings, name): _stored(name, directory)
        for name, is_missing in missing.items()
        if is_missing
    }


def development_key(name: str) -> str | None:
    """Return a key that `ringback up` has created in this checkout, or None."""
    with suppress(ImportError, FileNotFoundError):
        from deploy.local.daemon import LOCAL_DIRECTORY  # noqa: PLC0415 - only in a checkout

        return _file(name, LOCAL_DIRECTORY).read_text()
    return None


def _file(name: str, directory: Path) -> Path:
    return directory / "keys" / name


def _stored(name: str, directory: Path) -> str:
    file = _file(name, directory)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        unfinished = file.with_name(f"{name}.unfinished")
        unfinished.unlink(missing_ok=True)
        with os.fdopen(
            os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
        ) as out:
            out.write(_CREATE[name]())
        unfinished.rename(file)
    return file.read_text()
