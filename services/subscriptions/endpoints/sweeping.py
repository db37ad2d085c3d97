"""Sweeps: they bring the unfinished deliveries of an endpoint in line with its status, in batches.

A change of the status is one short transaction, however many deliveries wait. Until its sweep has
ended, new deliveries of an active endpoint also wait, so the order of creation is kept.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic import BaseModel

from services.subscriptions.deliveries.store import promote
from services.subscriptions.endpoints.domain import DISABLED, disabled_id
from services.subscriptions.endpoints.messages import EndpointMessages, IdUsedError, NewMessage
from services.subscriptions.endpoints.store import SQL
from shared.contracts.endpoint_facts import EndpointDisabled
from shared.contracts.endpoints import EndpointStatus
from shared.postgres.pool import Database

# Deliveries in one statement: it takes some 20 ms.
BATCH: Final = 1000
_FIRST: Final = UUID(int=0)
_STATEMENTS: Final = {
    EndpointStatus.ACTIVE: "release",
    EndpointStatus.DISABLED: "fail",
}


class _Disabled(NamedTuple):
    """A disabled endpoint that must be reported to its owner."""

    id: UUID
    owner: str | None
    description: str
    failing_since: datetime


class Sweeper:
    """Sweeps endpoints. `publish` returns when the facts are confirmed."""

    def __init__(
        self,
        database: Database,
        messages: EndpointMessages,
        publish: Callable[[BaseModel], Awaitable[None]],
    ) -> None:
        self._database = database
        self._messages = messages
        self._publish = publish
        # The last delivery that a sweep of a paused endpoint has held, by id and version.
        self._held: dict[tuple[UUID, int], int] = {}

    async def run_once(self) -> int:
        """Sweep a batch of each endpoint that needs it, and return the number of these endpoints.

        Raises:
            InfrastructureError: the database or the broker is unavailable; sweeps continue later.
        """
        count, after = 0, _FIRST
        while row := await self._database.fetchrow(SQL["sweeping"], after):
            after = row["id"]
            count += await self._sweep(after)
        return count

    async def _sweep(self, id_: UUID) -> bool:
        """Sweep a batch, and return whether there was something to do."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(SQL["lock_sweeping"], id_)
            if row is None:
                return False
            complete = await self._sweep_batch(connection, row) < BATCH
            disabled = row["status"] == EndpointStatus.DISABLED
            if complete and not disabled:
                await connection.execute(SQL["swept"], id_)
        if complete and disabled:
            await self._report(
                _Disabled(id_, row["client_id"], row["description"], row["failing_since"])
            )
        return True

    async def _sweep_batch(self, connection: Any, endpoint: Any) -> int:
        """Bring a batch of deliveries in line with the status, and return their number."""
        id_, status = endpoint["id"], endpoint["status"]
        if status == EndpointStatus.PAUSED:
            return await self._hold_batch(connection, (id_, endpoint["version"]))
        if status == EndpointStatus.ACTIVE and endpoint["ordered"]:
            await promote(connection, [id_])
            return 0
        result = await connection.execute(SQL[_STATEMENTS.get(status, "cancel")], id_, BATCH)
        return int(result.removeprefix("UPDATE "))

    async def _hold_batch(self, connection: Any, key: tuple[UUID, int]) -> int:
        """Make a batch wait. Earlier deliveries that become pending later are held when claimed."""
        row = await connection.fetchrow(SQL["hold"], key[0], BATCH, self._held.pop(key, 0))
        count: int = row["count"]
        if count == BATCH:
            self._held[key] = row["last"]
        return count

    async def _report(self, endpoint: _Disabled) -> None:
        """Report that an endpoint is disabled. A repeat, after a crash, has the same ids."""
        id_ = disabled_id(endpoint.id, endpoint.failing_since)
        await self._publish(
            EndpointDisabled(
                fact_id=str(id_),
                at=endpoint.failing_since,
                endpoint_id=endpoint.id,
                client_id=endpoint.owner or None,
                failing_since=endpoint.failing_since,
            )
        )
        if endpoint.owner is not None:
            payload: dict[str, Any] = {
                "type": DISABLED,
                "endpoint_id": str(endpoint.id),
                "description": endpoint.description,
                "failing_since": endpoint.failing_since.isoformat(),
            }
            message = NewMessage(endpoint.owner, f"msg_{id_.hex}", DISABLED, payload)
            # The owner may have used this id for another message, or may change the description
            # before a repeat. Neither must stop the sweeps of other owners.
            with suppress(IdUsedError):
                await self._messages.send(message, excluded=endpoint.id)
        await self._database.execute(SQL["reported"], endpoint.id, endpoint.failing_since)
