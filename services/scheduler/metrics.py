"""What the scheduler counts; docs/metrics.md explains each."""

from typing import Final

from prometheus_client import Counter, Histogram

from shared.contracts.schedules import Status

CREATED: Final = Counter(
    "ringback_schedules_created", "Orders to create an event, by what became of them.", ["outcome"]
)
MADE: Final = CREATED.labels("created")
DISPATCHED: Final = Counter(
    "ringback_schedules_dispatched",
    "Notifications given out, by what the broker said.",
    ["outcome"],
)
CONFIRMED: Final = DISPATCHED.labels("confirmed")
UNPUBLISHED: Final = DISPATCHED.labels("unpublished")
ENDED: Final = Counter(
    "ringback_schedules_settled", "What became of due events, by occurrence.", ["status"]
)
SETTLED: Final = {
    status: ENDED.labels(status.value)
    for status in (Status.NOTIFIED, Status.FAILED, Status.CANCELLED, Status.RETRYING)
}
MISFIRES: Final = Counter(
    "ringback_schedule_misfires", "Events that fell due long before they could fire.", ["policy"]
)
LAG: Final = Histogram(
    "ringback_schedule_lag_seconds",
    "From the due moment of an event to the broker's confirm of its first dispatch.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600, 86_400),
)
CLAIM: Final = Histogram(
    "ringback_schedule_claim_seconds",
    "One claim of due events in the database.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
