"""Adds deliveries in transactions of the callers, who wake the dispatcher after the commit.

Deliveries of a paused endpoint wait. Those of a disabled endpoint fail at once, so that a replay
finds them. A rate sets due times. At an ordered endpoint, each waits until the one before has
ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.subscriptions.deliveries.domain import user_event_webhook_id
from services.subscriptions.messenger.domain import AppendedEvent
from shared.postgres.queries import queries

SQL: Final = queries("services.subscriptions", "deliveries.sql")


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A delivery to add.

    client_id, message_id: of a message of a client.
    sequence: of an event of a user.
    payload: JSON, for a delivery of neither.
    destination: an encrypted `messages.Destination`; None for that of the endpoint.
    at_once: whether it does not wait for its turn at an ordered endpoint.
    """

    endpoint_id: UUID
    webhook_id: str
    client_id: str | None = None
    message_id: str | None = None
    sequence: int | None = None
    payload: str | None = None
    destination: bytes | None = None
    at_once: bool = False


async def add(connection: Any, deliveries: Sequence[NewDelivery]) -> None:
    """Add deliveries in the transaction of `connection`."""
    endpoint_ids = [delivery.endpoint_id for delivery in deliveries]
    special = await connection.fetch(SQL["lock_special"], endpoint_ids)
    await connection.execute(
        SQL["add"],
        endpoint_ids,
        [delivery.client_id for delivery in deliveries],
        [delivery.message_id for delivery in deliveries],
        [delivery.sequence for delivery in deliveries],
        [delivery.payload for delivery in deliveries],
        [delivery.destination for delivery in deliveries],
        [delivery.webhook_id for delivery in deliveries],
        [delivery.at_once for delivery in deliveries],
        [row["id"] for row in special],
    )


async def add_user_events(connection: Any, events: Sequence[AppendedEvent]) -> None:
    """Add a delivery for each event whose user has a callback, in the transaction of the events."""
    rows = await connection.fetch(
        SQL["endpoints_of_users"], list({event.user_id for event in events})
    )
    endpoints = {row["user_id"]: row["id"] for row in rows}
    if endpoints:
        await add(
            connection,
            [
                NewDelivery(
                    endpoints[event.user_id],
                    user_event_webhook_id(event.user_id, event.event_id),
                    sequence=event.sequence,
                )
                for event in events
                if event.user_id in endpoints
            ],
        )


async def promote(connection: Any, endpoint_ids: Sequence[UUID]) -> None:
    """Make the next deliveries in order of these endpoints, which are locked, pending."""
    await connection.execute(SQL["promote"], endpoint_ids)


async def redeliver(
    connection: Any, endpoint_id: UUID, ids: Sequence[int], rate: float
) -> list[int]:
    """Make finished deliveries of an endpoint due again, at most `rate` a second.

    Return their ids. The others have not finished, or the endpoint is disabled.
    """
    await connection.fetch(SQL["lock_endpoint"], endpoint_id)
    rows = await connection.fetch(SQL["redeliver"], endpoint_id, ids, rate)
    await promote(connection, [endpoint_id])
    return [row["id"] for row in rows]


async def cancel_read(connection: Any, token: bytes, sequence: int) -> None:
    """Cancel deliveries of events that a poll with this token has returned, up to a sequence.

    Only those at endpoints that share a position with the token, and that are not dispatched.
    """
    rows = await connection.fetch(SQL["lock_sharing"], token)
    endpoint_ids = [row["id"] for row in rows]
    await connection.execute(SQL["cancel_read"], endpoint_ids, sequence)
    await connection.execute(SQL["promote"], endpoint_ids)
