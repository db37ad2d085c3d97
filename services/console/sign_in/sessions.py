"""The sessions of signed-in users in PostgreSQL. Only the hash of a cookie is stored.

All methods raise StoreConnectionLostError when the database is unavailable.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.console.sign_in.roles import Role
from shared.postgres.pool import Database, StoreConnectionLostError
from shared.postgres.queries import queries

logger = logging.getLogger(__name__)

SQL: Final = queries("services.console")
# Characters of a name or an id of a user. Providers allow 255 for a subject.
MAX_TEXT: Final = 255
# Seconds between two deletions of ended sessions, and rows deleted at most each time.
CLEAN_INTERVAL: Final = 60.0
CLEAN_BATCH: Final = 1000
_COOKIE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class User:
    """A user as the provider describes them.

    actor: identifies the user in the audit log: the user name, otherwise the e-mail address.
    """

    issuer: str
    subject: str
    actor: str
    name: str


@dataclass(frozen=True, slots=True)
class Session:
    """A session: who it is, what they may do, and the token of its forms.

    subject: the user's id at the provider, the only one that logs contain.
    """

    subject: str
    actor: str
    name: str
    role: Role
    csrf: str

    def has_token(self, token: str) -> bool:
        """Return whether this is the token of the session's forms."""
        return hmac.compare_digest(self.csrf.encode(), token.encode())


class Sessions:
    """The table of sessions; several processes may use it at the same time.

    idle: seconds without a request after which a session ends.
    lifetime: seconds after which it ends in any case.
    """

    def __init__(self, database: Database, *, idle: float, lifetime: float) -> None:
        self._database = database
        self._idle = idle
        self._lifetime = lifetime

    async def start(self, user: User, role: Role) -> str:
        """Start a session, and return its cookie, which is always a new one."""
        cookie = secrets.token_urlsafe(_COOKIE_BYTES)
        await self._database.execute(
            SQL["start"],
            _hash(cookie),
            *(user.issuer, user.subject, user.actor, user.name),
            role.value,
            self._lifetime,
        )
        return cookie

    async def find(self, cookie: str, *, counts: bool = True) -> Session | None:
        """Return the session of a cookie, or None if it has ended.

        If it counts as a request, the session stays open for another idle time.
        """
        key = _hash(cookie)
        row = await self._database.fetchrow(SQL["find"], key, self._idle)
        if row is None:
            return None
        if counts and row["is_stale"]:  # at most one write a minute for each session
            await self._database.execute(SQL["touch"], key)
        role = Role(row["role"])
        return Session(row["subject"], row["actor"], row["name"], role, csrf_token(cookie))

    async def end(self, cookie: str) -> None:
        """End the session of a cookie."""
        await self._database.execute(SQL["end"], _hash(cookie))

    async def run(self) -> None:
        """Delete ended sessions until cancelled."""
        while True:
            try:
                await self.delete_ended()
            except StoreConnectionLostError as error:
                logger.warning("ended sessions not deleted: %s", error)
            await asyncio.sleep(CLEAN_INTERVAL)

    async def delete_ended(self) -> int:
        """Delete sessions that have ended, at most CLEAN_BATCH, and return their number."""
        status = await self._database.execute(SQL["delete_ended"], self._idle, CLEAN_BATCH)
        return int(status.removeprefix("DELETE "))


def user_of(issuer: str, claims: Mapping[str, Any]) -> User:
    """Return the user that verified claims describe."""
    subject = claims["sub"][:MAX_TEXT]
    actor = next(filter(None, (_text(claims, name) for name in _ACTOR_CLAIMS)), subject)
    return User(issuer, subject, actor, _text(claims, "name") or actor)


# An address is only as unique as the provider makes it; the subject always is.
_ACTOR_CLAIMS: Final = ("preferred_username", "email")


def csrf_token(cookie: str) -> str:
    """Return the token of the forms of a session. It does not reveal the cookie."""
    return hashlib.sha256(b"form " + cookie.encode()).hexdigest()


def _text(claims: Mapping[str, Any], name: str) -> str:
    """Return a claim as one line of visible characters, or an empty text."""
    value = claims.get(name)
    if not isinstance(value, str):
        return ""
    visible = "".join(each if each.isprintable() else " " for each in value)
    return " ".join(visible.split())[:MAX_TEXT]


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
