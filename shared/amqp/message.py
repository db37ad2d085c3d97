"""A message on its way through a handler, and what can become of it. Pure data, no IO."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel

from shared.amqp import codec
from shared.amqp.codec import Properties
from shared.amqp.frame_interceptor import Delivery
from shared.contracts import headers
from shared.errors import DeferredError, ExpiredError, TransientError
from shared.resilience.retry import RetryPolicy
from shared.topology import Tier

PERSISTENT: Final = 2
# No count or time of ours is so large; what is can't be counted up in an AMQP header.
_NONSENSE: Final = 1 << 53
_PLAIN_ID: Final = re.compile(r"[\x21-\x7e]{1,255}")

M = TypeVar("M")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(slots=True)
class Message:
    """A delivery on its way through a handler.

    id: the logical id, the same over all retries; empty until one is found or made.
    attempt: which try this is, from 1. first_at: epoch seconds of the first try, 0 before it.
    not_before: epoch seconds before which it is not to be tried.
    deferrals: how often it was put off since the last try. owner: the service of ours it is given
    back to instead of being buried, None for most.
    """

    id: str
    properties: Properties
    body: bytes
    attempt: int = 1
    first_at: float = 0.0
    not_before: float = 0.0
    deferrals: int = 0
    owner: str | None = None

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context the sender gave, if any; what has another form is none."""
        return headers.traceparent(self.properties.headers)

    @property
    def trace_id(self) -> str | None:
        """The id of the trace it belongs to, if any."""
        traceparent = self.traceparent
        return traceparent[3:35] if traceparent else None

    @property
    def attempt_id(self) -> str:
        """Names this try; the first one's moment tells it from those before a redrive."""
        return f"{self.id}/{self.first_at:.3f}/{self.attempt}"

    @property
    def dispatch(self) -> int | None:
        """The owner's count, if it has an owner."""
        return _number(self.properties.headers or {}, headers.DISPATCH) if self.owner else None

    def copied(self, changes: Mapping[str, Any], *, message_id: str | None) -> Properties:
        """Properties for a copy: the sender's kept, the broker's gone, ours changed."""
        return replace(
            self.properties,
            headers=headers.kept(self.properties.headers) | {headers.ID: self.id, **changes},
            message_id=message_id,
            delivery_mode=PERSISTENT,
            expiration=None,
            user_id=None,  # the broker takes only the publishing user's own
        )


def parse_delivery(delivery: Delivery, *, history: bool = False) -> Message:
    """The message in a delivery, its body not yet read; with `history`, the broker's `x-death` too.

    Raises:
        ContractViolation: its properties are not well-formed.
    """
    properties = codec.decode_properties(delivery.header, history=history)
    ours = properties.headers
    if not ours:
        return Message(_plain(properties.message_id), properties, delivery.body)
    return Message(
        _plain(ours.get(headers.ID) or properties.message_id),
        properties,
        delivery.body,
        attempt=_number(ours, headers.ATTEMPT) + 1,
        first_at=_number(ours, headers.FIRST_AT) / 1000,
        not_before=_number(ours, headers.NOT_BEFORE) / 1000,
        deferrals=_number(ours, headers.DEFERRALS),
        owner=_owner(ours.get(headers.OWNER)),
    )


def _plain(identifier: Any) -> str:
    """The id as visible ASCII of at most 255 characters, the same for the same id."""
    if not isinstance(identifier, str) or not identifier:
        return ""
    if _PLAIN_ID.fullmatch(identifier):
        return identifier
    return sha256(identifier.encode(errors="surrogatepass")).hexdigest()


def _owner(value: Any) -> str | None:
    return value if isinstance(value, str) and value in headers.OWNERS else None


def _number(ours: Mapping[str, Any], name: str) -> int:
    """A header of ours; anybody may have written it, so nonsense counts as not there."""
    value = ours.get(name)
    return value if isinstance(value, int) and 0 < value < _NONSENSE else 0


@dataclass(frozen=True, slots=True)
class Done(Generic[R_co]):
    """Handled, with the handler's value."""

    value: R_co


@dataclass(frozen=True, slots=True)
class Retried:
    """The try failed; the next follows after `tier`, not before `not_before` (epoch seconds)."""

    tier: Tier
    not_before: float
    error: TransientError


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not tried; comes back after `tier`."""

    tier: Tier
    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """Buried with its reason; `error` is what ended it."""

    reason: str
    error: Exception


@dataclass(frozen=True, slots=True)
class DispatchFailed:
    """Ended as one that is dead, but its owner is told instead of a dead queue."""

    reason: str
    error: Exception

    @property
    def final(self) -> bool:
        """Whether no later try can succeed; not so when its tries or its time are spent."""
        return not isinstance(self.error, TransientError | DeferredError | ExpiredError)


Outcome = Done[R] | Retried | Deferred | Dead | DispatchFailed


def _no_identity(_: Any) -> None:
    """Use the id of the message."""


def _default_policy(_: Any) -> RetryPolicy:
    return RetryPolicy()


def _finish_work() -> None:
    """Let handlers finish what they have begun."""


@dataclass(frozen=True, slots=True)
class ConsumerSpec(Generic[M, R]):
    """Describes what a service does with the messages of one queue.

    read: returns the model in a message, or raises ContractViolationError.
    handle: does the work. It returns a value on success and raises an error of shared.errors
        otherwise.
    report: logs and counts an outcome, and returns the fact to publish, if any. The model is None
        if the message could not be read.
    identity: returns the id that the model itself contains, if any.
    policy: returns how failed attempts of this model are retried.
    drain: makes `handle` raise InfrastructureError for work that it has not started.
    """

    queue: str
    read: Callable[[Message], M]
    handle: Callable[[Message, M], Awaitable[R]]
    report: Callable[[Message, M | None, Outcome[R]], BaseModel | None]
    identity: Callable[[M], str | None] = _no_identity
    policy: Callable[[M], RetryPolicy] = _default_policy
    drain: Callable[[], None] = _finish_work
