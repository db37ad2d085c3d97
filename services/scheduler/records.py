"""The values that the store takes and returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from services.scheduler.domain import ScheduledCallback
from services.scheduler.messages import Content
from shared.contracts.schedules import Status
from shared.pagination import Position


@dataclass(frozen=True, slots=True)
class NewCallback:
    """A callback to insert, due at `run_at` or in `delay` seconds.

    fingerprint: encrypted, because a hash of a request with a weak secret can be guessed.
    target: scheme, host and port of its URL; None for the transport amqp.
    """

    id: UUID
    client_id: str
    group_key: str | None
    event_key: str | None
    fingerprint: bytes | None
    content: Content
    lease: float
    stop_after: float
    rules: str | None
    traceparent: str | None
    run_at: datetime | None
    delay: float
    target: str | None


@dataclass(frozen=True, slots=True)
class ExistingCallback:
    """A callback that was created before."""

    id: UUID
    status: Status
    run_at: datetime
    fingerprint: bytes | None


class StoredFacts(NamedTuple):
    """Facts as JSON, stored with a change until they are confirmed."""

    id: UUID
    facts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Claim:
    """A callback claimed until `callback.next_at`, with everything that its dispatch needs.

    lease: seconds that the dispatch may take from its confirmation.
    due_at: since when it could be claimed; later than a `run_at` that was in the past.
    now: when it was claimed.
    """

    callback: ScheduledCallback
    content: Content
    lease: float
    traceparent: str | None
    due_at: datetime
    now: datetime


class Lease(NamedTuple):
    """The lease of a published dispatch, in seconds."""

    id: UUID
    dispatch: int
    seconds: float


class Backlog(NamedTuple):
    """How many callbacks wait, how many of them are due, and since how many seconds at most."""

    waiting: int
    due: int
    oldest: float


class Member(NamedTuple):
    """A callback of a group. `status` is None while it moves from one table to another."""

    position: Position
    status: Status | None
    unfinished: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A callback in a list: its position, and the size of its context in bytes."""

    position: Position
    size: int

    @property
    def id(self) -> UUID:
        """Return its id."""
        return self.position[1]


@dataclass(frozen=True, slots=True)
class Inserted:
    """The result of an insert. `due` are those that the caller must dispatch at once."""

    callbacks: Mapping[UUID, ScheduledCallback]
    due: Sequence[Claim]
