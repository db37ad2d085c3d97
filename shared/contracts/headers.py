"""The AMQP headers that Ringback adds to a message, and what it keeps of the sender's."""

import re
from collections.abc import Mapping
from typing import Any, Final

PREFIX: Final = "x-ringback-"
ID: Final = "x-ringback-id"  # the logical id, the same over all retries
ATTEMPT: Final = "x-ringback-attempt"  # attempts made so far
DEFERRALS: Final = "x-ringback-deferrals"  # postponements since the last attempt
FIRST_AT: Final = "x-ringback-first-at"  # first attempt, milliseconds since the epoch
NOT_BEFORE: Final = "x-ringback-not-before"  # next attempt, milliseconds since the epoch
REASON: Final = "x-ringback-reason"  # why it is dead
DIED_AT: Final = "x-ringback-died-at"  # since when, milliseconds since the epoch
OWNER: Final = "x-ringback-owner"  # the service that a message is given back to, never buried
DISPATCH: Final = "x-ringback-dispatch"  # the owner's own count, told in every fact
CLIENT_ID: Final = "x-ringback-client-id"  # of a request: whom it is made for, already verified
TRACEPARENT: Final = "traceparent"  # W3C Trace Context

# Who may own a message: those that listen for the facts about it, `callback.*.OWNER`.
SCHEDULER: Final = "scheduler"
OWNERS: Final = frozenset({SCHEDULER})

# The broker's own marks begin with these.
_BROKERS: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-")


_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def traceparent(headers: Mapping[str, Any] | None) -> str | None:
    """The W3C trace context in them, if any; what has another form is none."""
    value = (headers or {}).get(TRACEPARENT)
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


def kept(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The headers to carry on to a copy: the sender's and ours, none of the broker's.

    The broker's own (`x-death` and its kin) are stripped: RabbitMQ before 4.0.1 loses messages
    that are republished with them. So are `CC` and `BCC`, by which a sender would route our copy.
    """
    if not headers:
        return {}
    return {
        name: value
        for name, value in headers.items()
        if not name.startswith(_BROKERS) and name not in ("CC", "BCC")
    }
