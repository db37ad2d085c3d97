"""Cursors for lists that are ordered by a time and an id (keyset pagination)."""

import base64
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

Position = tuple[datetime, UUID]
# Positions before the oldest and after the newest item.
START: Final[Position] = datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0)
END: Final[Position] = datetime(9999, 12, 31, tzinfo=UTC), UUID(int=(1 << 128) - 1)


def encode_cursor(position: Position) -> str:
    """Return the text for `next_cursor`, safe in a URL."""
    at, id_ = position
    return base64.urlsafe_b64encode(f"{at.astimezone(UTC).isoformat()}/{id_}".encode()).decode()


def decode_cursor(cursor: str) -> Position:
    """Return the position of a cursor.

    Raises:
        ValueError: the text is not a cursor of `encode_cursor`.
    """
    at, _, id_ = base64.urlsafe_b64decode(cursor.encode()).decode().partition("/")
    time = datetime.fromisoformat(at)
    if time.tzinfo is not UTC:
        raise ValueError("a cursor holds a time in UTC")
    return time, UUID(id_)
