"""A message in the consumer, and the outcomes of handling it. Pure data, no IO."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Generic, Optional, TypeVar

from pydantic import BaseModel

from shared.amqp import codec
from shared.amqp.codec import Properties
from shared.amqp.frame_interceptor import Delivery
from shared.contracts import headers
from shared.errors import ContractViolationError, DeferredError, ExpiredError, TransientError
from shared.resilience.retry import BUG_POLICY, RetryPolicy
from shared.topology import Tier

if TYPE_CHECKING:
    from shared.tracing.spans import Span

PERSISTENT: Final = 2
# Ringback's own counts and times are smaller. A larger one could overflow an AMQP header.
_MAX_NUMBER: Final = 1 << 53
# A count that a sender sets stays at most here, so that the next copy can carry it incremented.
_MAX_COUNT: Final = _MAX_NUMBER - 2
# The year 9000. Some clients set milliseconds.
_MAX_TIMESTAMP: Final = 221_845_392_000
_PLAIN_ID: Final = re.compile(r"[\x21-\x7e]{1,255}")

M = TypeVar("M")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(slots=True)
class Message:
    """A delivery in the consumer.

    id: the logical id, the same in all attempts. Empty until it is known.
    attempt: the number of this attempt, from 1.
    first_at: epoch seconds of the first attempt, 0 before it. Time that does not age the message is
        added to it.
    not_before: epoch seconds of the next attempt, 0 for now.
    deferrals: the number of deferrals since the last attempt.
    chain: the message_id of the original, the same for all its copies. Empty if it had none.
    step: the number of the copy in the chain, 0 for the original.
    owner: the service that gets a fact instead of a dead letter, usually None.
    record: what the handler has noted for its report, None if it made no attempt.
    span: the span of this delivery, None if it is not traced.
    """

    id: str
    properties: Properties
    body: bytes
    attempt: int = 1
    first_at: float = 0.0
    not_before: float = 0.0
    deferrals: int = 0
    chain: str = ""
    step: int = 0
    owner: str | None = None
    record: Any = None
    span: Optional["Span"] = None

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context of this delivery: its span's, or the sender's if it is valid."""
        if self.span is not None:
            return self.span.traceparent
        return headers.traceparent(self.properties.headers)

    @property
    def trace_id(self) -> str | None:
        """The trace id in `traceparent`, if any."""
        traceparent = self.traceparent
        return traceparent[3:35] if traceparent else None

    @property
    def sent_at(self) -> int | None:
        """The sender's timestamp in epoch seconds, if any.

        Raises:
            ContractViolationError: it is later than the year 9000, so it is not in seconds.
        """
        timestamp = self.properties.timestamp
        if timestamp is not None and timestamp > _MAX_TIMESTAMP:
            raise ContractViolationError(f"timestamp {timestamp} is not in epoch seconds")
        return timestamp

    @property
    def attempt_id(self) -> str:
        """The id of this attempt, the same if it is repeated, and another one after a redrive."""
        return f"{self.id}/{self.chain}/{self.attempt}"

    @property
    def dispatch(self) -> int | None:
        """The number of the owner's dispatch, if the message has an owner."""
        return _number(self.properties.headers or {}, headers.DISPATCH) if self.owner else None

    @property
    def reference(self) -> str | None:
        """The owner's own id of the message, if any."""
        reference = (self.properties.headers or {}).get(headers.REFERENCE)
        return reference if isinstance(reference, str) else None

    @property
    def replay(self) -> str | None:
        """The id of the job or request that sent the message again, if any."""
        return _plain((self.properties.headers or {}).get(headers.REPLAY)) or None

    def copy_properties(self, changes: Mapping[str, Any], *, message_id: str | None) -> Properties:
        """Return properties for a copy: the sender's, and our headers with these changes."""
        return replace(
            self.properties,
            headers=headers.without_broker_headers(self.properties.headers)
            | {headers.ID: self.id, **changes},
            message_id=message_id,
            delivery_mode=PERSISTENT,
            expiration=None,
            user_id=None,  # the broker accepts only the name of the publishing user
        )


def parse_delivery(delivery: Delivery, *, history: bool = False) -> Message:
    """Parse the properties of a delivery, but not its body; `x-death` only with `history`.

    Raises:
        ContractViolationError: the properties are malformed.
    """
    properties = codec.decode_properties(delivery.header, history=history)
    ours = properties.headers
    if not ours:
        plain = _plain(properties.message_id)
        return Message(plain, properties, delivery.body, chain=plain)
    return Message(
        _plain(ours.get(headers.ID) or properties.message_id),
        properties,
        delivery.body,
        attempt=_count(ours, headers.ATTEMPT) + 1,
        first_at=_number(ours, headers.FIRST_AT) / 1000,
        not_before=_number(ours, headers.NOT_BEFORE) / 1000,
        deferrals=_count(ours, headers.DEFERRALS),
        chain=_chain(ours, properties),
        step=_count(ours, headers.STEP),
        owner=_owner(ours.get(headers.OWNER)),
    )


def _plain(identifier: Any) -> str:
    """Return the id, or its hash unless it is visible ASCII of at most 255 characters."""
    if not isinstance(identifier, str) or not identifier:
        return ""
    if _PLAIN_ID.fullmatch(identifier):
        return identifier
    return sha256(identifier.encode(errors="surrogatepass")).hexdigest()


def _chain(ours: Mapping[str, Any], properties: Properties) -> str:
    """Return the chain of a copy. A dead letter that was moved back begins a new one."""
    if chain := _plain(ours.get(headers.CHAIN)):
        return chain
    original = _plain(properties.message_id)
    died_at = _number(ours, headers.DIED_AT)
    return f"{original}@{died_at}" if original and died_at else original


def _owner(value: Any) -> str | None:
    return value if isinstance(value, str) and value in headers.OWNERS else None


def _number(ours: Mapping[str, Any], name: str) -> int:
    """Return a numeric header of ours, or 0 if it is not valid: any sender can set it."""
    value = ours.get(name)
    return value if isinstance(value, int) and 0 < value < _MAX_NUMBER else 0


def _count(ours: Mapping[str, Any], name: str) -> int:
    """Return a count of ours, limited so that its increment is a valid header."""
    return min(_number(ours, name), _MAX_COUNT)


@dataclass(frozen=True, slots=True)
class Done(Generic[R_co]):
    """The handler returned a value."""

    value: R_co


@dataclass(frozen=True, slots=True)
class Retried:
    """The attempt failed. The next one follows after `tier`, at `not_before` (epoch seconds)."""

    tier: Tier
    not_before: float
    error: TransientError


@dataclass(frozen=True, slots=True)
class Deferred:
    """Postponed without an attempt. The message returns after `tier`."""

    tier: Tier
    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """Dead-lettered with a reason. `error` is the cause. `attempted`: after an attempt."""

    reason: str
    error: Exception
    attempted: bool = True


@dataclass(frozen=True, slots=True)
class DispatchFailed:
    """Failed for good, but reported to the message's owner instead of dead-lettered.

    attempted: whether this dispatch failed after an attempt, rather than while it waited.
    """

    reason: str
    error: Exception
    attempted: bool = True

    @property
    def final(self) -> bool:
        """Whether a later dispatch cannot succeed either."""
        return not isinstance(self.error, TransientError | DeferredError | ExpiredError)

    @property
    def retry_after(self) -> float:
        """The seconds that a later dispatch must wait, as the target requested; or 0."""
        error = self.error
        return error.retry_after if isinstance(error, TransientError | ExpiredError) else 0.0


Outcome = Done[R] | Retried | Deferred | Dead | DispatchFailed
# The names of outcomes in metrics and spans.
OUTCOMES: Final[Mapping[type, str]] = {
    Done: "done",
    Retried: "retried",
    Deferred: "deferred",
    Dead: "dead",
    DispatchFailed: "dispatch_failed",
}


def _no_identity(_: Any) -> None:
    """Use the id of the message."""


def _retry_bugs(_: Any) -> RetryPolicy:
    return BUG_POLICY


async def _at_once() -> None:
    """Consume without a condition."""


def _finish_work() -> None:
    """Let handlers finish the work that they have started."""


@dataclass(frozen=True, slots=True)
class ConsumerSpec(Generic[M, R]):
    """Describes what a service does with the messages of one queue.

    parse: returns the model in a message, or raises ContractViolationError.
    handle: does the work. It returns a value on success and raises an error of shared.errors
        otherwise.
    report: logs and counts an outcome, and returns the fact to publish, if any. The model is None
        if the message could not be parsed.
    send_facts: publishes the facts of several reports, and those about dead letters. Their messages
        are acknowledged afterwards.
    identity: returns the id that the model itself contains, if any.
    policy: returns how failed attempts of this model are retried. By default only bugs are.
    drain: makes `handle` raise InfrastructureError for work that it has not started.
    ready: waits until messages can be consumed, on each new connection.
    """

    queue: str
    parse: Callable[[Message], M]
    handle: Callable[[Message, M], Awaitable[R]]
    report: Callable[[Message, M | None, Outcome[R]], BaseModel | None]
    send_facts: Callable[[Sequence[BaseModel]], Awaitable[None]]
    identity: Callable[[M], str | None] = _no_identity
    policy: Callable[[M], RetryPolicy] = _retry_bugs
    drain: Callable[[], None] = _finish_work
    ready: Callable[[], Awaitable[None]] = _at_once
