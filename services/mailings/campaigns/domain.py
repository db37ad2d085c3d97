"""The life of a mailing: what each action does in each status. Pure functions, no IO."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final
from uuid import UUID, uuid5

from shared.contracts.mailings import MailingChanges, MailingContent, MailingStatus
from shared.ids import with_time_of

_NAMESPACE: Final = UUID("4c1f6c7e-2b0e-4f6a-9a57-6a3f0d6a5d24")
DRAFT, SCHEDULED, RUNNING, PAUSED, FINISHED, CANCELLED = MailingStatus


class Action(StrEnum):
    """An action of the caller on a mailing."""

    CHANGE = "change"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    DELETE = "delete"


class Effect(StrEnum):
    """The effect of an action. The values are the texts of the documentation."""

    NOTHING = "unchanged"  # the mailing is in the wanted status already
    BEGIN = "scheduled, or running from `start_at` on"
    PAUSE = "paused"
    CANCEL = "cancelled"
    DELETE = "deleted"
    CHANGE_ANY = "any field"
    CHANGE_LIMITS = "`end_at`, `rate_per_minute`"


# Every other combination is refused.
EFFECTS: Final[Mapping[tuple[Action, MailingStatus], Effect]] = MappingProxyType(
    {
        (Action.CHANGE, DRAFT): Effect.CHANGE_ANY,
        (Action.CHANGE, SCHEDULED): Effect.CHANGE_ANY,
        (Action.CHANGE, RUNNING): Effect.CHANGE_LIMITS,
        (Action.CHANGE, PAUSED): Effect.CHANGE_LIMITS,
        (Action.START, DRAFT): Effect.BEGIN,
        (Action.START, SCHEDULED): Effect.NOTHING,
        (Action.START, RUNNING): Effect.NOTHING,
        (Action.PAUSE, SCHEDULED): Effect.PAUSE,
        (Action.PAUSE, RUNNING): Effect.PAUSE,
        (Action.PAUSE, PAUSED): Effect.NOTHING,
        (Action.RESUME, SCHEDULED): Effect.NOTHING,
        (Action.RESUME, RUNNING): Effect.NOTHING,
        (Action.RESUME, PAUSED): Effect.BEGIN,
        (Action.CANCEL, DRAFT): Effect.CANCEL,
        (Action.CANCEL, SCHEDULED): Effect.CANCEL,
        (Action.CANCEL, RUNNING): Effect.CANCEL,
        (Action.CANCEL, PAUSED): Effect.CANCEL,
        (Action.CANCEL, CANCELLED): Effect.NOTHING,
        (Action.DELETE, DRAFT): Effect.DELETE,
        (Action.DELETE, SCHEDULED): Effect.DELETE,
        (Action.DELETE, FINISHED): Effect.DELETE,
        (Action.DELETE, CANCELLED): Effect.DELETE,
    }
)
# The fields that CHANGE_LIMITS may change.
LIMITS: Final = frozenset({"end_at", "rate_per_minute"})
# Fields of which a change of one removes the other.
_ALTERNATIVES: Final = {"text": "template", "template": "text"}


def effect(action: Action, status: MailingStatus) -> Effect | None:
    """Return the effect of an action on a mailing with this status; None if it is refused."""
    return EFFECTS.get((action, status))


def merge(content: MailingContent, changes: MailingChanges) -> MailingContent:
    """Return the content with its changes.

    Raises:
        ValidationError: the fields contradict each other.
    """
    given = changes.model_dump(exclude_unset=True)
    replaced = {
        other: None for name, other in _ALTERNATIVES.items() if name in given and other not in given
    }
    return MailingContent.model_validate(content.model_dump() | replaced | given)


def changed_fields(before: MailingContent, after: MailingContent) -> set[str]:
    """Return the names of the fields that differ."""
    old, new = dict(before), dict(after)
    return {name for name in old if old[name] != new[name]}


def begun(start_at: datetime, now: datetime) -> MailingStatus:
    """Return the status of a mailing that neither waits for a start by hand nor is paused."""
    return SCHEDULED if now < start_at else RUNNING


def mailing_id_of_key(client_id: str | None, idempotency_key: str) -> UUID:
    """Return the id of the mailing that a request with an idempotency key creates."""
    return uuid5(_NAMESPACE, f"{client_id or ''}\0key:{idempotency_key}")


def mailing_id_of_request(client_id: str | None, message_id: str) -> UUID:
    """Return the id of the mailing that a request without an idempotency key creates.

    A request that is delivered again leads to the same id.
    """
    return with_time_of(message_id, uuid5(_NAMESPACE, f"{client_id or ''}\0{message_id}"))


def cohort_id(mailing: UUID, timezone: str | None) -> UUID:
    """Return the id of the posting to the clients of a mailing in a time zone, or to all."""
    return uuid5(mailing, timezone or "")


def etag(version: int) -> str:
    """Return the entity tag of a version of a mailing."""
    return f'"{version}"'
