"""The metrics of subscriptions. docs/metrics.md explains them."""

from typing import Final

from prometheus_client import Counter, Gauge

from shared.contracts.endpoints import DeliveryStatus

_EVENTS: Final = Counter("ringback_user_events", "User events by outcome.", ["outcome"])
APPENDED: Final = _EVENTS.labels("appended")
REPEATED: Final = _EVENTS.labels("repeated")
UNKNOWN_USER: Final = _EVENTS.labels("unknown_user")
INVALID: Final = _EVENTS.labels("invalid")
FAILED: Final = _EVENTS.labels("failed")

_SIGN_INS: Final = Counter("ringback_sign_ins", "Sign-ins of users by outcome.", ["outcome"])
SIGNED_IN: Final = _SIGN_INS.labels("signed_in")
REJECTED: Final = _SIGN_INS.labels("rejected")

_DISPATCHED: Final = Counter(
    "ringback_deliveries_dispatched", "Deliveries published to the broker, by outcome.", ["outcome"]
)
CONFIRMED: Final = _DISPATCHED.labels("confirmed")
UNPUBLISHED: Final = _DISPATCHED.labels("unpublished")
_SETTLED: Final = Counter(
    "ringback_deliveries_settled", "Settled dispatches, by the resulting status.", ["status"]
)
SETTLED: Final = {
    status: _SETTLED.labels(status.value)
    for status in (DeliveryStatus.DELIVERED, DeliveryStatus.FAILED, DeliveryStatus.PENDING)
}
DISABLED: Final = Counter(
    "ringback_endpoints_disabled", "Endpoints disabled because they failed or are gone."
)
DELIVERY_BACKPRESSURE: Final = Gauge(
    "ringback_delivery_backpressure",
    "1 while due deliveries wait because the queue `callbacks` is full, otherwise 0.",
    multiprocess_mode="livemax",
)
CLOCK_SKEW: Final = Gauge(
    "ringback_delivery_clock_skew_seconds",
    "Maximum time by which a callback service's clock was ahead of the database's, in seconds.",
    multiprocess_mode="livemax",
)
ENDPOINT_MESSAGES: Final = Counter("ringback_endpoint_messages", "Messages to endpoints.")
