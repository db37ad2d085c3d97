"""The outcome and commands of an event: pure functions of the event, the rules and the time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from json import dumps
from typing import Any, Final, Protocol
from uuid import UUID, uuid5

from shared.clock import rfc3339
from shared.contracts.callback import SEND_CALLBACK
from shared.contracts.events import Event
from shared.contracts.message_types import MESSAGE_TYPES, MessageType
from shared.contracts.postings import POSTING
from shared.contracts.schedules import SCHEDULE_CALLBACK
from shared.contracts.user_events import USER_EVENT
from shared.errors import PermanentError

_NAMESPACE: Final = UUID("3b6f5a52-7f5e-4c53-8d0a-6a2f0f1c9a77")


class Kind(StrEnum):
    """The kinds of commands that a rule can have."""

    POSTING = "posting"
    SCHEDULE = "schedule"
    CALLBACK = "callback"
    USER_EVENT = "user_event"


MESSAGE_TYPE_OF: Final[Mapping[Kind, MessageType]] = {
    Kind.POSTING: MESSAGE_TYPES[POSTING],
    Kind.SCHEDULE: MESSAGE_TYPES[SCHEDULE_CALLBACK],
    Kind.CALLBACK: MESSAGE_TYPES[SEND_CALLBACK],
    Kind.USER_EVENT: MESSAGE_TYPES[USER_EVENT],
}


class EventOutcome(StrEnum):
    """The outcome of a valid event."""

    ACCEPTED = "accepted"  # its commands are published
    DUPLICATE = "duplicate"  # it was accepted before
    STALE = "stale"  # too old
    SKIPPED = "skipped"  # no rule's condition holds


class UnknownEventError(PermanentError):
    """No rule matches the event."""


class RuleError(PermanentError):
    """Cannot apply a rule to the event. None of the event's commands are published."""


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event with its identity.

    id: the producer's id, the same in every copy. at: the time of the event in epoch seconds, if
    known.
    """

    event: Event
    id: str
    at: float | None

    @property
    def key(self) -> UUID:
        """Identifies the event among those of all producers; copies have the same key."""
        return uuid5(_NAMESPACE, f"{self.event.from_service}\0{self.event.event}\0{self.id}")

    @property
    def values(self) -> dict[str, Any]:
        """The variables of rules; see VARIABLES."""
        event = self.event
        return {
            "id": self.id,
            "from_service": event.from_service,
            "event": event.event,
            "details": event.details,
            "occurred_at": None if self.at is None else rfc3339(self.at),
        }


VARIABLES: Final = frozenset(("id", "from_service", "event", "details", "occurred_at"))


@dataclass(frozen=True, slots=True)
class Command:
    """One message that follows from an event. The `id` is the same for every copy of the event."""

    id: UUID
    kind: Kind
    body: bytes


class Rule(Protocol):
    """A rule about certain events."""

    @property
    def name(self) -> str:
        """Unique among the rules."""
        ...

    @property
    def max_age(self) -> float | None:
        """The age in seconds up to which the rule applies; None for any age."""
        ...

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Return whether its condition holds; raises RuleError."""
        ...

    def commands(self, values: Mapping[str, Any]) -> Sequence[tuple[str, Kind, bytes]]:
        """Return its commands with their labels within the rule; raises RuleError."""
        ...


Rules = Mapping[tuple[str, str], Sequence[Rule]]


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of an event, with its commands if it is accepted."""

    outcome: EventOutcome
    commands: tuple[Command, ...] = ()


def content_id(event: Event) -> str:
    """Return an id for an event that has none: equal events have equal ids."""
    fields = event.model_dump(mode="json", exclude_unset=True)
    return sha256(dumps(fields, sort_keys=True).encode()).hexdigest()


def decide(rules: Rules, received: ReceivedEvent, *, now: float) -> Decision:
    """Apply the rules to an event at `now` (epoch seconds). Never returns DUPLICATE.

    Raises:
        UnknownEventError: no rule matches the event.
        RuleError: one of its rules cannot be applied.
    """
    event = received.event
    matching = rules.get((event.from_service, event.event))
    if matching is None:
        raise UnknownEventError(
            f"no rule matches the event {event.event!r} of {event.from_service!r}"
        )
    if event.expires_at is not None and event.expires_at.timestamp() <= now:
        return Decision(EventOutcome.STALE)
    values = received.values
    applicable = [rule for rule in matching if rule.applies(values)]
    if not applicable:
        return Decision(EventOutcome.SKIPPED)
    fresh = [rule for rule in applicable if _fresh(rule, received.at, now)]
    if not fresh:
        return Decision(EventOutcome.STALE)
    key = received.key
    return Decision(
        EventOutcome.ACCEPTED,
        tuple(
            Command(uuid5(key, f"{rule.name}/{label}"), kind, body)
            for rule in fresh
            for label, kind, body in rule.commands(values)
        ),
    )


def _fresh(rule: Rule, at: float | None, now: float) -> bool:
    return rule.max_age is None or at is None or now - at <= rule.max_age
