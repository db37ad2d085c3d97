"""The AMQP headers that Ringback adds to a message, and those that it copies."""

import re
from collections.abc import Mapping
from typing import Any, Final

# The property `app_id` of all messages that Ringback itself publishes.
APP_ID: Final = "ringback"
PREFIX: Final = "x-ringback-"
ID: Final = "x-ringback-id"  # logical id, the same on all retries
ATTEMPT: Final = "x-ringback-attempt"  # number of attempts so far
DEFERRALS: Final = "x-ringback-deferrals"  # number of deferrals since the last attempt
CHAIN: Final = "x-ringback-chain"  # the message_id of the original, the same on all its copies
STEP: Final = "x-ringback-step"  # number of the copy in its chain, from 1
FIRST_AT: Final = "x-ringback-first-at"  # time of the first attempt, in epoch milliseconds
NOT_BEFORE: Final = "x-ringback-not-before"  # time of the next attempt, in epoch milliseconds
REASON: Final = "x-ringback-reason"  # reason of a dead letter
DIED_AT: Final = "x-ringback-died-at"  # time of dead-lettering, in epoch milliseconds
LETTER: Final = "x-ringback-letter"  # unique id of a dead letter
OWNER: Final = "x-ringback-owner"  # service that receives failed dispatches as facts
REFERENCE: Final = "x-ringback-reference"  # the owner's own id, copied to every fact
DISPATCH: Final = "x-ringback-dispatch"  # the owner's dispatch number, copied to every fact
CLIENT_ID: Final = "x-ringback-client-id"  # verified client of a request
OPERATOR: Final = "x-ringback-operator"  # "1" in a request of an operator
ACTOR: Final = "x-ringback-actor"  # the person or client behind a request, for the audit log
REPLAY: Final = "x-ringback-replay"  # id of the job or request that sends a callback again
TRACEPARENT: Final = "traceparent"  # W3C Trace Context

# Services that can own a message, because they consume the facts `callback.*.OWNER`.
SCHEDULER: Final = "scheduler"
SUBSCRIPTIONS: Final = "subscriptions"
OWNERS: Final = frozenset({SCHEDULER, SUBSCRIPTIONS})

# Prefixes of the headers that the broker sets.
_BROKER_PREFIXES: Final = (
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-",
)


# The specification forbids version ff, and ids of zeros only.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


def traceparent(headers: Mapping[str, Any] | None) -> str | None:
    """Return the W3C trace context; None if it is missing or malformed."""
    value = (headers or {}).get(TRACEPARENT)
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


def unsampled(traceparent: str | None) -> str | None:
    """Return the trace context with the flag that nothing after it is recorded as a span."""
    return None if traceparent is None else f"{traceparent[:-2]}00"


def without_broker_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the headers to copy to a republished message: those of the sender and of Ringback.

    The broker's (`x-death` and similar) are removed: RabbitMQ before 4.0.1 loses messages that are
    republished with them. `CC` and `BCC` are removed, because they would route the copy.
    """
    if not headers:
        return {}
    return {
        name: value
        for name, value in headers.items()
        if not name.startswith(_BROKER_PREFIXES) and name not in ("CC", "BCC")
    }
