"""Keys for development: made once for a checkout, below .ringback/, when none are configured."""

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

_MAKE: Final[dict[str, Callable[[], str]]] = {
    "ticket_key": lambda: secrets.token_urlsafe(KEY_BYTES),
    "secrets_key": lambda: base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode(),
}


def development_keys(settings: SecuritySettings, checkout: Path) -> dict[str, str]:
    """The environment variables of the keys that are not configured."""
    wanted = {
        "ticket_key": settings.ticket_key is None and settings.ticket_jwks_file is None,
        "secrets_key": settings.secrets_key is None,
    }
    return {
        variable_of(SecuritySettings, name): _kept(name, checkout)
        for name, missing in wanted.items()
        if missing
    }


def development_ticket_key(checkout: Path) -> str | None:
    """The ticket key that `ringback up` has made in this checkout, if it has."""
    with suppress(FileNotFoundError):
        return _file("ticket_key", checkout).read_text()
    return None


def _file(name: str, checkout: Path) -> Path:
    return checkout / ".ringback" / "keys" / name


def _kept(name: str, checkout: Path) -> str:
    file = _file(name, checkout)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        unfinished = file.with_name(f"{name}.unfinished")
        unfinished.unlink(missing_ok=True)
        with os.fdopen(
            os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
        ) as out:
            out.write(_MAKE[name]())
        unfinished.rename(file)
    return file.read_text()
