"""The metrics of subscriptions. docs/metrics.md explains them."""

from typing import Final

from prometheus_client import Counter

_EVENTS: Final = Counter("ringback_user_events", "User events by outcome.", ["outcome"])
APPENDED: Final = _EVENTS.labels("appended")
REPEATED: Final = _EVENTS.labels("repeated")
UNKNOWN_USER: Final = _EVENTS.labels("unknown_user")
INVALID: Final = _EVENTS.labels("invalid")
FAILED: Final = _EVENTS.labels("failed")

_SIGN_INS: Final = Counter("ringback_sign_ins", "Sign-ins of users by outcome.", ["outcome"])
SIGNED_IN: Final = _SIGN_INS.labels("signed_in")
REJECTED: Final = _SIGN_INS.labels("rejected")
