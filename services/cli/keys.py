"""Development keys: `ringback up` creates them once if none are configured."""

import base64
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from shared.security.encryption import KEY_BYTES
from shared.security.settings import SecuritySettings
from shared.settings import variable_of

_CREATE: Final[dict[str, Callable[[], str]]] = {
    "ticket_key": lambda: secrets.token_urlsafe(KEY_BYTES),
    "secrets_key": lambda: base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode(),
}


def development_keys(settings: SecuritySettings, directory: Path) -> dict[str, str]:
    """Return the variables of the keys that are not configured, from files in `directory`."""
    missing = {
        "ticket_key": settings.ticket_key is None and settings.ticket_jwks_file is None,
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
