"""Encrypts the secrets of endpoints again with the first key, so that older keys can be removed."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from uuid import UUID

from shared.postgres.queries import queries
from shared.security.encryption import DecryptionError, ResealedBatch, SecretCipher

SQL: Final[Mapping[str, str]] = queries("services.subscriptions", "reseal.sql")
# Endpoints in one statement.
BATCH_SIZE: Final = 500


async def reseal(connection: Any, cipher: SecretCipher) -> AsyncIterator[ResealedBatch]:
    """Encrypt the secrets of all endpoints, and of their replaced URLs, with the first key.

    Each row is one transaction, so it is safe to stop at any time and to start again.
    """
    after = UUID(int=0)
    while rows := await connection.fetch(SQL["endpoints"], after, BATCH_SIZE, cipher.prefix):
        outdated = [(row["id"], row["secrets"]) for row in rows if row["outdated"]]
        yield await _reseal(connection, cipher, "reseal_endpoint", outdated, read=len(rows))
        after = rows[-1]["id"]
    rows = await connection.fetch(SQL["destinations"], cipher.prefix)
    stored = [(row["id"], [row["destination"]]) for row in rows]
    yield await _reseal(connection, cipher, "reseal_delivery", stored, read=len(rows))


async def _reseal(
    connection: Any,
    cipher: SecretCipher,
    statement: str,
    outdated: list[tuple[Any, list[bytes | None]]],
    *,
    read: int,
) -> ResealedBatch:
    resealed, faults = 0, []
    for id_, secrets in outdated:
        try:
            changed = [
                None if secret is None else cipher.encrypt(cipher.decrypt(secret))
                for secret in secrets
            ]
        except DecryptionError as error:
            faults.append(str(error))
            continue
        old = secrets if statement == "reseal_endpoint" else secrets[0]
        if await connection.fetchval(SQL[statement], id_, old, *changed):
            resealed += 1
    return ResealedBatch(read, resealed, len(outdated) - resealed - len(faults), tuple(faults))
