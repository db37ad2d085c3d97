"""Deliveries in PostgreSQL."""

from collections.abc import Sequence
from typing import Any

from services.subscriptions.messenger.domain import AppendedEvent


async def add_user_events(connection: Any, events: Sequence[AppendedEvent]) -> None:
    """Add a delivery for each event whose user has a callback, in the transaction of the events."""
