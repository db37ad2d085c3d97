"""What an event means: pure, the rules and the time in, commands out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from json import dumps
from typing import Any, Final, Protocol
from uuid import UUID, uuid5

from shared.clock import rfc3339
from shared.contracts.events import Event
from shared.errors import PermanentError

_NAMESPACE: Final = UUID("3b6f5a52-7f5e-4c53-8d0a-6a2f0f1c9a77")


class Kind(StrEnum):
    """The kinds of commands that a rule can give."""

    POSTING = "posting"
    SCHEDULE = "schedule"
    CALLBACK = "callback"
    USER_EVENT = "user_event"


class UnknownEventError(PermanentError):
    """No rule is about such events."""


class RuleError(PermanentError):
    """A rule can't be applied to this event; nothing was done about the event."""


@dataclass(frozen=True, slots=True)
class Received:
    """An event as it came.

    id: the producer's name for it, the same when it comes again. at: epoch seconds at which it
    happened, as far as known.
    """

    event: Event
    id: str
    at: float | None

    @property
    def key(self) -> UUID:
        """What an event that comes again is known by: one name of a producer's, one id."""
        return uuid5(_NAMESPACE, f"{self.event.from_service}\0{self.event.event}\0{self.id}")

    @property
    def values(self) -> dict[str, Any]:
        """What rules may speak of; see VARIABLES."""
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
    """One message that follows from an event. `id` is the same whenever it is worked out anew."""

    id: UUID
    kind: Kind
    body: bytes


class Rule(Protocol):
    """What follows from certain events, up to `max_age`; None: of any age."""

    @property
    def name(self) -> str:
        """Unique among the rules."""
        ...

    @property
    def max_age(self) -> float | None:
        """Seconds."""
        ...

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether its condition holds; raises RuleError."""
        ...

    def commands(self, values: Mapping[str, Any]) -> Sequence[tuple[str, Kind, bytes]]:
        """Its commands with their labels within the rule; raises RuleError."""
        ...


Rules = Mapping[tuple[str, str], Sequence[Rule]]


class Verdict(StrEnum):
    """What is done about an event."""

    ACT = "act"
    STALE = "stale"  # too old for every rule whose condition holds
    SKIP = "skip"  # no condition holds


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, with the commands to give if it is to act."""

    verdict: Verdict
    commands: tuple[Command, ...] = ()


def content_id(event: Event) -> str:
    """An id for an event that has none: equal events have equal ones."""
    fields = event.model_dump(mode="json", exclude_unset=True)
    return sha256(dumps(fields, sort_keys=True).encode()).hexdigest()


def decide(rules: Rules, received: Received, *, now: float) -> Decision:
    """What is to be done about an event at `now` (epoch seconds).

    Raises:
        UnknownEventError: no rule is about it.
        RuleError: one of its rules can't be applied.
    """
    event = received.event
    about = rules.get((event.from_service, event.event))
    if about is None:
        raise UnknownEventError(
            f"no rule knows the event {event.event!r} of {event.from_service!r}"
        )
    if event.expires_at is not None and event.expires_at.timestamp() <= now:
        return Decision(Verdict.STALE)
    values = received.values
    holding = [rule for rule in about if rule.applies(values)]
    if not holding:
        return Decision(Verdict.SKIP)
    fresh = [rule for rule in holding if _fresh(rule, received.at, now)]
    if not fresh:
        return Decision(Verdict.STALE)
    key = received.key
    return Decision(
        Verdict.ACT,
        tuple(
            Command(uuid5(key, f"{rule.name}/{label}"), kind, body)
            for rule in fresh
            for label, kind, body in rule.commands(values)
        ),
    )


def _fresh(rule: Rule, at: float | None, now: float) -> bool:
    return rule.max_age is None or at is None or now - at <= rule.max_age
