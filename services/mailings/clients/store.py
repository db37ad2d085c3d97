"""The client directory in PostgreSQL. Every method is one statement or one transaction.

The first argument is the calling service that owns the clients; '' is the anonymous one. All
methods raise StoreConnectionLostError when the database is unavailable, slow or full. The effect
is then unknown.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final
from uuid import UUID

from asyncpg import UniqueViolationError

from services.mailings.clients.domain import Fields, StoredClient
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.mailings")


class PhoneTakenError(Exception):
    """Another client of the same owner has the phone."""


class Directory:
    """The table `mailings.clients`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, owner: str, id_: UUID, fields: Fields) -> StoredClient:
        """Create a client. A repeat with the same id returns it as it is now.

        Raises:
            PhoneTakenError: another client has the phone.
        """
        row = await self._database.fetchrow(SQL["create_client"], owner, id_, *fields)
        if row is None:
            raise PhoneTakenError
        return _client(row)

    async def find(self, owner: str, id_: UUID) -> StoredClient | None:
        """Return a client, or None if the owner has no such client."""
        row = await self._database.fetchrow(SQL["client"], owner, id_)
        return None if row is None else _client(row)

    async def change(
        self, owner: str, id_: UUID, change: Callable[[StoredClient], Fields]
    ) -> StoredClient | None:
        """Change a client, and return it, or None if the owner has no such client.

        `change` returns the new fields. It may raise an error, which prevents the change.

        Raises:
            PhoneTakenError: another client has the phone.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock_client"], owner, id_)
            if row is None:
                return None
            client = _client(row)
            fields = change(client)
            if fields == client.fields:
                return client
            try:
                row = await connection.fetchrow(SQL["change_client"], owner, id_, *fields)
            except UniqueViolationError:
                raise PhoneTakenError from None
        return _client(row)

    async def delete(self, owner: str, id_: UUID, check: Callable[[StoredClient], object]) -> bool:
        """Delete a client; return whether it existed. `check` may raise, which prevents it."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock_client"], owner, id_)
            if row is None:
                return False
            check(_client(row))
            await connection.execute(SQL["delete_client"], owner, id_)
        return True

    async def import_all(
        self, owner: str, clients: Sequence[tuple[UUID, Fields]]
    ) -> tuple[int, list[UUID]]:
        """Create clients with different phones, or replace those with the same phone.

        Returns the number of new clients, and the ids of all that were created or changed now. An
        id is used only for a new one.
        """
        columns = [list(column) for column in zip(*(fields for _, fields in clients), strict=True)]
        row = await self._database.fetchrow(
            SQL["import_clients"], owner, [id_ for id_, _ in clients], *columns
        )
        return row["created"], row["written"]

    async def page(  # noqa: PLR0913 - each is a filter
        self,
        owner: str,
        after: UUID,
        limit: int,
        *,
        operator_codes: Collection[str] = (),
        tags: Collection[str] = (),
        timezone: str | None = None,
    ) -> list[StoredClient]:
        """Return clients with an id after this one, ordered by id.

        Without operator codes, tags or a time zone, each of them is permitted.
        """
        rows = await self._database.fetch(
            *(SQL["clients"], owner, after, limit),
            *(_distinct(operator_codes), _distinct(tags), timezone),
        )
        return [_client(row) for row in rows]

    async def find_all(self, owner: str, ids: Collection[UUID]) -> dict[UUID, StoredClient]:
        """Return those of these clients that exist, by id."""
        rows = await self._database.fetch(SQL["clients_with_ids"], owner, ids)
        return {row["id"]: _client(row) for row in rows}

    async def page_by_phone(  # noqa: PLR0913 - each is a filter
        self,
        owner: str,
        after: str,
        limit: int,
        phones: tuple[str, str],
        *,
        operator_code: str | None,
        tag: str | None,
        timezone: str | None,
    ) -> list[StoredClient]:
        """Return clients with a phone after this one, in a range of phones, ordered by phone."""
        rows = await self._database.fetch(
            *(SQL["clients_by_phone"], owner, after, limit),
            *(*phones, operator_code, tag, timezone),
        )
        return [_client(row) for row in rows]

    async def find_by_phone(self, owner: str, phone: str) -> StoredClient | None:
        """Return the client with a phone, or None if the owner has no such client."""
        found = await self.page_by_phone(
            owner, "", 1, (phone, phone), operator_code=None, tag=None, timezone=None
        )
        return found[0] if found else None

    async def count(
        self,
        owner: str,
        *,
        operator_codes: Collection[str] = (),
        tags: Collection[str] = (),
    ) -> dict[str, int]:
        """Return the number of clients by time zone.

        Without operator codes or tags, each of them is permitted.
        """
        rows = await self._database.fetch(
            SQL["count_clients"], owner, _distinct(operator_codes), _distinct(tags)
        )
        return {row["timezone"]: row["count"] for row in rows}


def _distinct(values: Collection[str]) -> list[str] | None:
    return sorted(set(values)) or None


def _client(row: Any) -> StoredClient:
    fields = Fields(row["phone"], row["operator_code"], row["tag"], row["timezone"])
    return StoredClient(row["id"], fields, row["version"], row["created_at"], row["updated_at"])
