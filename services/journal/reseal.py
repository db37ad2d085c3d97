"""Encrypts kept requests again with the first key, so that older keys can be removed."""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from shared.postgres.queries import queries
from shared.security.encryption import DecryptionError, ResealedBatch, SecretCipher

SQL: Final[Mapping[str, str]] = queries("services.journal", "reseal.sql")
# Kept requests in one statement: up to 25 MiB.
BATCH_SIZE: Final = 100
_FIRST: Final = ("", "", "", datetime(1, 1, 1, tzinfo=UTC))


async def reseal(connection: Any, cipher: SecretCipher) -> AsyncIterator[ResealedBatch]:
    """Encrypt all kept requests, and the URLs of running jobs, with the first key.

    Each row is one transaction, so it is safe to stop at any time and to start again.
    """
    after: tuple[Any, ...] = _FIRST
    while rows := await connection.fetch(SQL["requests"], *after, BATCH_SIZE, cipher.prefix):
        stored = [(_key(row), row["sealed"]) for row in rows if row["sealed"] is not None]
        yield await _reseal(connection, cipher, "reseal_request", stored, read=len(rows))
        after = _key(rows[-1])
    rows = await connection.fetch(SQL["jobs"], cipher.prefix)
    stored = [((row["id"],), row["url"]) for row in rows]
    yield await _reseal(connection, cipher, "reseal_job", stored, read=len(rows))


def _key(row: Any) -> tuple[Any, ...]:
    return row["callback_id"], row["client_id"], row["reference"], row["at"]


async def _reseal(
    connection: Any,
    cipher: SecretCipher,
    statement: str,
    outdated: list[tuple[tuple[Any, ...], bytes]],
    *,
    read: int,
) -> ResealedBatch:
    resealed, faults = 0, []
    for key, sealed in outdated:
        try:
            changed = cipher.encrypt(cipher.decrypt(sealed))
        except DecryptionError as error:
            faults.append(str(error))
            continue
        if await connection.fetchval(SQL[statement], *key, sealed, changed):
            resealed += 1
    return ResealedBatch(read, resealed, len(outdated) - resealed - len(faults), tuple(faults))
