"""Hashes passwords with scrypt, in threads, because each takes about 50 ms of CPU."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hmac import compare_digest
from typing import Final, TypeVar

from shared.errors import InfrastructureError

SALT_BYTES: Final = 16
# Passwords hashed at a time. Each needs 16 MiB.
MAX_THREADS: Final = 2
# Passwords in progress and waiting: about five seconds of work, half the default timeout of the
# gateway's requests.
MAX_UNFINISHED: Final = 200

T = TypeVar("T")


class TooManyPasswordsError(InfrastructureError):
    """Too many passwords wait to be hashed. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("too many sign-ins and registrations at once", effect_unknown=False)


class Passwords:
    """Hashes and verifies passwords, at most MAX_THREADS at a time. Others wait."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_THREADS, "passwords")
        self._unfinished = 0
        self._unknown = os.urandom(SALT_BYTES)

    def close(self) -> None:
        """End the threads. Passwords that still wait are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> bytes:
        """Return a salt and the hash of a password.

        Raises:
            TooManyPasswordsError: try again later.
        """
        salt = os.urandom(SALT_BYTES)
        return await self._run(lambda: salt + _scrypt(password, salt))

    async def verify(self, password: str, stored: bytes | None) -> bool:
        """Return whether a password matches what `hash` has returned for it.

        None, for an unknown user, takes the same time and never matches.

        Raises:
            TooManyPasswordsError: try again later.
        """
        salt = (stored or self._unknown)[:SALT_BYTES]
        digest = await self._run(lambda: _scrypt(password, salt))
        return compare_digest(salt + digest, stored or b"")

    async def _run(self, work: Callable[[], T]) -> T:
        if self._unfinished >= MAX_UNFINISHED:
            raise TooManyPasswordsError
        self._unfinished += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._unfinished -= 1


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=32)
