"""Encrypts stored secrets again with the first key, so that older keys can be removed."""

from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID

from services.scheduler.store import SQL
from shared.security.encryption import DecryptionError, ResealedBatch, SecretCipher

# Callbacks in one statement. It takes some milliseconds, and locks only those that it changes.
BATCH_SIZE: Final = 500
_FIRST_ID: Final = UUID(int=0)


async def reseal(connection: Any, cipher: SecretCipher) -> AsyncIterator[ResealedBatch]:
    """Encrypt the secrets of all callbacks with the first key, batch by batch.

    Each batch is one transaction, so it is safe to stop at any time and to start again.
    """
    after = _FIRST_ID
    while rows := await connection.fetch(SQL["secrets"], after, BATCH_SIZE, cipher.prefix):
        changes: list[tuple[UUID, bytes | None, bytes | None, bytes | None]] = []
        faults: list[str] = []
        for row in rows:
            if not row["outdated"]:
                continue
            try:
                message = _again(cipher, row["message"])
                fingerprint = _again(cipher, row["fingerprint"])
            except DecryptionError as error:
                faults.append(str(error))
            else:
                changes.append((row["id"], row["message"], message, fingerprint))
        changed = 0
        if changes:
            columns = map(list, zip(*changes, strict=True))
            changed = await connection.fetchval(SQL["reseal"], *columns)
        yield ResealedBatch(len(rows), changed, len(changes) - changed, tuple(faults))
        after = rows[-1]["id"]


async def estimated_callbacks(connection: Any) -> int:
    """Return about how many callbacks are stored; 0 if PostgreSQL has not counted them yet."""
    return int(await connection.fetchval(SQL["estimated_requests"]))


def _again(cipher: SecretCipher, encrypted: bytes | None) -> bytes | None:
    return None if encrypted is None else cipher.encrypt(cipher.decrypt(encrypted))
