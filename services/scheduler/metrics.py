"""The metrics of the scheduler. docs/metrics.md explains each."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from shared.contracts.schedules import Status

REQUESTED: Final = Counter(
    "ringback_schedules_created", "Requests to create a callback, by outcome.", ["outcome"]
)
# `increase()` misses the first count of a series that does not exist before it.
for _outcome in ("repeated", "key_used", "idempotency_conflict", "invalid"):
    REQUESTED.labels(_outcome)
CREATED: Final = REQUESTED.labels("created")
DISPATCHED: Final = Counter(
    "ringback_schedules_dispatched",
    "Notifications published to the broker, by outcome.",
    ["outcome"],
)
CONFIRMED: Final = DISPATCHED.labels("confirmed")
UNPUBLISHED: Final = DISPATCHED.labels("unpublished")
ENDED: Final = Counter(
    "ringback_schedules_settled", "Settled dispatches, by the resulting status.", ["status"]
)
SETTLED: Final = {
    status: ENDED.labels(status.value)
    for status in (Status.NOTIFIED, Status.FAILED, Status.CANCELLED, Status.RETRYING)
}
MISFIRES: Final = Counter(
    "ringback_schedule_misfires", "Callbacks claimed long after they fell due.", ["policy"]
)
for _policy in ("fire", "skip"):
    MISFIRES.labels(_policy)
CLOCK_SKEW: Final = Gauge(
    "ringback_callback_clock_skew_seconds",
    "Seconds by which the clock of a callback service was ahead of the database's, at most.",
    multiprocess_mode="livemax",
)
BACKPRESSURE: Final = Gauge(
    "ringback_schedule_backpressure",
    "1 while due callbacks wait because the queue `callbacks` is full, otherwise 0.",
    multiprocess_mode="livemax",
)
WAITING: Final = Gauge(
    "ringback_schedules_waiting",
    "Callbacks that wait for their due time or a retry, about.",
    multiprocess_mode="livemax",
)
DUE: Final = Gauge(
    "ringback_schedules_due",
    "Callbacks that are due, at most 10,000.",
    multiprocess_mode="livemax",
)
OLDEST_DUE: Final = Gauge(
    "ringback_schedule_oldest_due_seconds",
    "Seconds for which the oldest of them has been due.",
    multiprocess_mode="livemax",
)
LAG: Final = Histogram(
    "ringback_schedule_lag_seconds",
    "Seconds from the due time, or from a later request, to the broker's confirmation of the first"
    " dispatch.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600, 86_400),
)
CLAIM: Final = Histogram(
    "ringback_schedule_claim_seconds",
    "Seconds for one claim of due callbacks in the database.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
