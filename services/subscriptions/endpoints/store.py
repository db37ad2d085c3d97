"""Endpoints of customers in PostgreSQL. Every method is one statement or one transaction.

The first argument is the client that owns the endpoints; '' is the anonymous client. All
methods raise StoreConnectionLostError when the database is unavailable, slow or full. The effect is
then unknown, and each is safe to repeat.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from services.subscriptions.endpoints.domain import Content, StoredEndpoint, new_secret
from shared.contracts.endpoints import EndpointStatus, StoredReplay
from shared.pagination import Position
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.security.encryption import SecretCipher

SQL: Final = queries("services.subscriptions", "endpoints.sql")
# Seconds for which the old secret also signs after a rotation.
OLD_SECRET_LIFETIME: Final = 86_400.0
# Bytes of a page. In a response, a byte becomes at most six.
MAX_PAGE_BYTES: Final = 1 << 20


class TooManyEndpointsError(Exception):
    """The client has reached its maximum number of endpoints."""


class KeyUsedError(Exception):
    """A different endpoint was created with the same idempotency key."""


class Endpoints:
    """The endpoints of clients in the table `subscriptions.endpoints`."""

    def __init__(self, database: Database, cipher: SecretCipher, *, limit: int) -> None:
        self._database = database
        self._cipher = cipher
        self._limit = limit

    async def create(self, owner: str, id_: UUID, content: Content) -> StoredEndpoint:
        """Create an endpoint with a new secret. A repeat with the same id returns the stored one.

        Raises:
            TooManyEndpointsError: the owner has too many.
            KeyUsedError: another endpoint has the id, or had it.
        """
        row = await self._database.fetchrow(
            SQL["create"],
            *(id_, owner, *self._columns(content), self._encrypt(new_secret()), self._limit),
        )
        if row is not None:
            return self._endpoint(row)
        found = await self.find(owner, id_)
        if found is None:
            if await self._database.fetchrow(SQL["exists"], id_) is None:
                raise TooManyEndpointsError
            raise KeyUsedError
        if found.version == 1 and found.content != content:
            raise KeyUsedError
        return found

    async def find(self, owner: str, id_: UUID) -> StoredEndpoint | None:
        """Return an endpoint, or None if the owner has no such endpoint."""
        row = await self._database.fetchrow(SQL["find"], owner, id_)
        return None if row is None else self._endpoint(row)

    async def page(
        self, owner: str, status: EndpointStatus | None, before: Position, limit: int
    ) -> tuple[list[StoredEndpoint], bool]:
        """Return endpoints before a position, newest first, and whether more follow.

        A page ends early after MAX_PAGE_BYTES.
        """
        rows = await self._database.fetch(
            SQL["page"], owner, *before, status, limit + 1, MAX_PAGE_BYTES
        )
        page = [self._endpoint(row) for row in rows[:limit]]
        return page, bool(rows) and rows[0]["found"] > len(page)

    async def change(
        self,
        owner: str,
        id_: UUID,
        change: Callable[[StoredEndpoint], tuple[Content, EndpointStatus]],
    ) -> StoredEndpoint | None:
        """Change an endpoint, and return it, or None if the owner has no such endpoint.

        `change` returns the new content and status. It may raise an error, which prevents the
        change.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock"], owner, id_)
            if row is None:
                return None
            endpoint = self._endpoint(row)
            content, status = change(endpoint)
            if (content, status) == (endpoint.content, endpoint.status):
                return endpoint
            row = await connection.fetchrow(SQL["change"], id_, *self._columns(content), status)
        return self._endpoint(row)

    async def rotate(
        self, owner: str, id_: UUID, rotation: str, check: Callable[[StoredEndpoint], object]
    ) -> StoredEndpoint | None:
        """Replace the secret, and return the endpoint. A repeat of the rotation changes nothing.

        Return None if the owner has no such endpoint. `check` may raise an error, which prevents
        the rotation.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock"], owner, id_)
            if row is None:
                return None
            endpoint = self._endpoint(row)
            if endpoint.rotation == rotation:
                return endpoint
            check(endpoint)
            secret = self._encrypt(new_secret())
            row = await connection.fetchrow(
                SQL["rotate"], id_, secret, OLD_SECRET_LIFETIME, rotation
            )
        return self._endpoint(row)

    async def delete(
        self, owner: str, id_: UUID, check: Callable[[StoredEndpoint], object]
    ) -> bool:
        """Delete an endpoint, and return whether it existed. `check` may raise an error first."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock"], owner, id_)
            if row is None:
                return False
            check(self._endpoint(row))
            await connection.execute(SQL["delete"], id_)
        return True

    async def replay(self, id_: UUID, endpoint_id: UUID, since: datetime, until: datetime) -> None:
        """Store a replay of the messages that failed in [since, until)."""
        await self._database.execute(SQL["add_replay"], id_, endpoint_id, since, until)

    async def replays(self, endpoint_id: UUID, before: Position, limit: int) -> list[StoredReplay]:
        """Return the replays of an endpoint before a position, newest first."""
        rows = await self._database.fetch(SQL["replays"], endpoint_id, *before, limit)
        return [StoredReplay(**dict(row)) for row in rows]

    def _columns(self, content: Content) -> tuple[Any, ...]:
        headers = self._encrypt(json.dumps(dict(content.headers))) if content.headers else None
        return (
            self._encrypt(content.url),
            list(content.event_types),
            content.description,
            headers,
            content.rate_limit,
            content.ordered,
            content.fingerprint,
        )

    def _encrypt(self, text: str) -> bytes:
        return self._cipher.encrypt(text.encode())

    def _endpoint(self, row: Any) -> StoredEndpoint:
        decrypt = self._cipher.decrypt
        headers = {} if row["headers"] is None else json.loads(decrypt(row["headers"]))
        return StoredEndpoint(
            id=row["id"],
            content=Content(
                decrypt(row["url"]).decode(),
                tuple(row["event_types"]),
                row["description"],
                headers,
                row["rate_limit"],
                row["ordered"],
                row["fingerprint"],
            ),
            secret=decrypt(row["secret"]).decode(),
            status=EndpointStatus(row["status"]),
            failing_since=row["failing_since"],
            old_secret_until=row["old_secret_until"],
            rotation=row["rotation"],
            version=row["version"],
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        )
