"""Messages to endpoints, their deliveries and attempts in PostgreSQL.

All methods raise StoreConnectionLostError when the database is unavailable, slow or full. The
effect is then unknown, and each is safe to repeat.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

from services.subscriptions.deliveries.store import NewDelivery, add, redeliver
from services.subscriptions.endpoints.domain import TEST, filters_of
from shared.contracts.context import json_text
from shared.contracts.endpoints import (
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    EndpointMessage,
)
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.subscriptions", "endpoint_messages.sql")
# Deliveries in the response to a request for a message.
MAX_DELIVERIES: Final = 1000
# Before all messages.
_OLDEST: Final = datetime(1970, 1, 1, tzinfo=UTC), "", ""
# The same text for the same JSON value, however its fields are ordered.
_comparable: Final = json.JSONEncoder(sort_keys=True).encode


class IdUsedError(Exception):
    """Another message has the same id."""


class NewMessage(NamedTuple):
    """A message to store. `payload` is any JSON value."""

    owner: str
    id: str
    event_type: str
    payload: Any


class Replayed(StrEnum):
    """The result of a replay of one message."""

    STARTED = "started"
    NOT_FOUND = "not_found"  # the endpoint has no delivery of the message


class EndpointMessages:
    """The messages to endpoints."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pruned = _OLDEST  # the last message that retention has looked at

    async def send(self, message: NewMessage, *, excluded: UUID | None = None) -> int:
        """Store a message with a delivery for each endpoint that selects it, except `excluded`.

        Return the number of endpoints. A repeat changes nothing, and returns the same number.

        Raises:
            IdUsedError: a message with this id has another type or payload.
        """
        filters = filters_of(message.event_type)
        async with self._database.transaction() as connection:
            rows = await connection.fetch(SQL["matching"], message.owner, filters)
            targets = [row["id"] for row in rows if row["id"] != excluded]
            return await _add(connection, message, targets)

    async def test(self, owner: str, id_: str, endpoint_id: UUID) -> None:
        """Store a test message for one endpoint. A repeat changes nothing."""
        payload = {"type": TEST, "endpoint_id": str(endpoint_id)}
        async with self._database.transaction() as connection:
            message = NewMessage(owner, id_, TEST, payload)
            await _add(connection, message, [endpoint_id], at_once=True)

    async def find(self, owner: str, id_: str) -> EndpointMessage | None:
        """Return a message with its deliveries, or None if the owner has no such message."""
        row = await self._database.fetchrow(SQL["find"], owner, id_)
        if row is None:
            return None
        deliveries = await self._database.fetch(
            SQL["deliveries_of_message"], owner, id_, row["event_type"], MAX_DELIVERIES
        )
        return EndpointMessage(
            id=id_,
            event_type=row["event_type"],
            payload=json.loads(row["payload"]),
            created_at=row["created_at"],
            deliveries=[_delivery(delivery) for delivery in deliveries],
        )

    async def attempts(
        self, owner: str, id_: str, after: tuple[datetime, int], limit: int
    ) -> list[tuple[int, DeliveryAttempt]] | None:
        """Return attempts after a position, each with the id of its delivery, oldest first.

        None if the owner has no such message.
        """
        if await self._database.fetchrow(SQL["find"], owner, id_) is None:
            return None
        rows = await self._database.fetch(SQL["attempts"], owner, id_, *after, limit)
        return [(row["delivery_id"], _attempt(row)) for row in rows]

    async def page(
        self,
        owner: str,
        endpoint_id: UUID,
        status: DeliveryStatus | None,
        before: int,
        limit: int,
    ) -> list[tuple[int, Delivery]]:
        """Return the deliveries of an endpoint before one, each with its id, newest first."""
        rows = await self._database.fetch(
            SQL["deliveries_of_endpoint"], owner, endpoint_id, before, status, limit
        )
        return [(row["id"], _delivery(row)) for row in rows]

    async def failed(self, owner: str, before: int, limit: int) -> list[tuple[int, Delivery]]:
        """Return failed deliveries to all endpoints of the owner, as `page` does."""
        rows = await self._database.fetch(SQL["failed_of_client"], owner, before, limit)
        return [(row["id"], _delivery(row)) for row in rows]

    async def replay(self, owner: str, message_id: str, endpoint_id: UUID, rate: float) -> Replayed:
        """Deliver a message to an endpoint again, unless its delivery has not ended."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                SQL["delivery_of_message"], owner, message_id, endpoint_id
            )
            if row is None:
                return Replayed.NOT_FOUND
            await redeliver(connection, endpoint_id, [row["id"]], rate)
        return Replayed.STARTED

    async def prune(self, age: timedelta, limit: int) -> int:
        """Delete at most `limit` rows of each table that are older than `age`.

        Messages with deliveries are kept, so each call checks only the next `limit` messages.
        """
        seconds, deleted = age.total_seconds(), 0
        for query in ("prune_attempts", "prune_deliveries", "prune_replays"):
            status = await self._database.execute(SQL[query], seconds, limit)
            deleted += int(status.removeprefix("DELETE "))
        row = await self._database.fetchrow(SQL["prune_messages"], seconds, limit, *self._pruned)
        self._pruned = _OLDEST if row is None else (row["created_at"], row["client_id"], row["id"])
        deleted += 0 if row is None else row["deleted"]
        status = await self._database.execute(SQL["prune_endpoints"], limit)
        return deleted + int(status.removeprefix("DELETE "))


async def _add(
    connection: Any, message: NewMessage, targets: Sequence[UUID], *, at_once: bool = False
) -> int:
    """Store a message with deliveries, and return their number. A repeat returns the first one."""
    owner, id_, event_type, payload = message
    row = await connection.fetchrow(
        SQL["add"], owner, id_, event_type, json_text(payload), len(targets)
    )
    if row is None:
        existing = await connection.fetchrow(SQL["find"], owner, id_)
        before = _comparable(json.loads(existing["payload"]))
        if (existing["event_type"], before) != (event_type, _comparable(payload)):
            raise IdUsedError
        return int(existing["endpoints"])
    if targets:
        await add(
            connection,
            [NewDelivery(target, id_, owner, id_, at_once=at_once) for target in targets],
        )
    return len(targets)


def _delivery(row: Any) -> Delivery:
    status = DeliveryStatus(row["status"])
    return Delivery(
        endpoint_id=row["endpoint_id"],
        message_id=row["message_id"],
        event_type=row["event_type"],
        status=status,
        attempts=row["attempts"],
        last_error=row["last_error"],
        next_at=row["due_at"] if status is DeliveryStatus.PENDING else None,
        created_at=row["created_at"],
        finished_at=row["finished_at"],
    )


def _attempt(row: Any) -> DeliveryAttempt:
    return DeliveryAttempt(
        endpoint_id=row["endpoint_id"],
        attempt=row["attempt"],
        at=row["at"],
        status_code=row["status_code"],
        duration=row["duration"],
        error=row["error"],
    )
