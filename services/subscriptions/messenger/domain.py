"""User events and their outcomes. Pure data."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from shared.contracts.context import json_text
from shared.contracts.users import NEW_MESSAGE


@dataclass(frozen=True, slots=True)
class UserMessage:
    """A message from one user to another."""

    from_id: int
    to_id: int
    text: str


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to append. `event` is JSON; empty for a message, whose id is assigned later."""

    user_id: int
    event_id: str
    type: str
    event: str
    message: UserMessage | None = None

    @property
    def size(self) -> int:
        """Return the number of characters to store."""
        return len(self.event) if self.message is None else 2 * len(self.message.text)


def message_event(message: UserMessage, request_id: str) -> NewEvent:
    """Return the event of a message. A repeat of the request has the same id."""
    return NewEvent(message.to_id, f"message-{request_id}", NEW_MESSAGE, "", message)


def new_message(message: UserMessage, id_: int, created_at: datetime) -> str:
    """Return the event that its recipient gets, as JSON."""
    return json_text(
        {
            "message_id": id_,
            "to_id": message.to_id,
            "from_id": message.from_id,
            "created_at": int(created_at.timestamp()),
            "text": message.text,
        }
    )


class Outcome(StrEnum):
    """The outcome of an append."""

    APPENDED = "appended"
    REPEATED = "repeated"  # it was appended before
    UNKNOWN_USER = "unknown_user"


@dataclass(frozen=True, slots=True)
class AppendedEvent:
    """An event that is appended. `event` is JSON."""

    user_id: int
    sequence: int
    event_id: str
    type: str
    event: str


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The outcome of an append, and the event as JSON, unless its user is unknown."""

    outcome: Outcome
    event: str = ""

    @property
    def is_new(self) -> bool:
        """Whether the event was appended now."""
        return self.outcome is Outcome.APPENDED

    def repeated(self) -> "AppendResult":
        """Return the result for a repeat of this event."""
        return replace(self, outcome=Outcome.REPEATED) if self.is_new else self


UNKNOWN_USER: Final = AppendResult(Outcome.UNKNOWN_USER)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of a user. `event` is JSON."""

    sequence: int
    type: str
    event: str


@dataclass(frozen=True, slots=True)
class Page:
    """The events of a user after a position, and the expiry of the token that reads them."""

    user_id: int
    position: int
    expires_at: datetime
    events: list[StoredEvent]
