"""An attempt to sign in: the secrets that the browser keeps until the provider redirects it back.

Pure. The attempt is in a cookie, so that it needs no storage. Each attempt has its own, so that
several windows can sign in at the same time.
"""

import base64
import hashlib
import json
import secrets
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import urlsplit

# Seconds for which a user may stay at the provider.
LIFETIME: Final = 600
# Characters of a path to return to. Longer ones lead to the overview. With the cookies of six
# attempts, the header stays below 8 kB, beyond which servers refuse a request.
MAX_PATH: Final = 500
# Characters of the state that name the attempt's cookie.
NAME_LENGTH: Final = 12
_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Attempt:
    """The secrets of one attempt, and the path of the console to return to."""

    state: str
    nonce: str
    verifier: str
    path: str

    @property
    def name(self) -> str:
        """Return the part of the state that names the attempt's cookie."""
        return self.state[:NAME_LENGTH]

    def encode(self) -> str:
        """Return the attempt as the value of a cookie."""
        return base64.urlsafe_b64encode(json.dumps(asdict(self)).encode()).decode().rstrip("=")


def new_attempt(path: str) -> Attempt:
    """Return a new attempt that returns to `path`, or to the overview if it is not a local path."""
    state, nonce, verifier = (secrets.token_urlsafe(_BYTES) for _ in range(3))
    return Attempt(state, nonce, verifier, local_path(path))


def decode(cookie: str, state: str) -> Attempt | None:
    """Return the attempt in a cookie, or None if it is not the one with this state."""
    try:
        padded = cookie.encode() + b"=" * (-len(cookie) % 4)
        fields: Any = json.loads(base64.urlsafe_b64decode(padded))
        texts = {name: fields[name] for name in ("state", "nonce", "verifier", "path")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not all(isinstance(text, str) and text for text in texts.values()):
        return None
    if not secrets.compare_digest(texts["state"].encode(), state.encode()):
        return None
    return Attempt(**texts | {"path": local_path(texts["path"])})


def challenge(verifier: str) -> str:
    """Return the code challenge of a verifier (RFC 7636, S256)."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def local_path(path: str) -> str:
    """Return a path with its query if it stays on this site, otherwise `/`.

    Browsers read two slashes or backslashes, and paths with tabs, as other sites.
    """
    if (
        not 1 <= len(path) <= MAX_PATH
        or path[0] != "/"
        or path[1:2] in ("/", "\\")
        or "\\" in path
        or not path.isascii()
        or not path.isprintable()
    ):
        return "/"
    parts = urlsplit(path)
    return path if not parts.scheme and not parts.netloc else "/"
