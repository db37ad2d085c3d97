"""Metrics of the callback service; docs/metrics.md explains each."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

CALLBACKS: Final = Counter("callback", "Attempts to deliver a callback.", ["status"])
SUCCESS: Final = CALLBACKS.labels("success")
ERROR: Final = CALLBACKS.labels("error")
DURATION: Final = Histogram(
    "callback_duration_seconds",
    "Seconds that one attempt took.",
    ["target_url"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
PAUSES_KNOWN: Final = Gauge(
    "ringback_paused_targets_known",
    "1 if the process has the list of paused targets.",
    multiprocess_mode="livemin",
)
HMAC_ERRORS: Final = Counter("hmac_errors", "Callbacks that could not be signed.")

OTHER: Final = "other"


class TargetLabels:
    """Limits the values of the label `target_url`: the first `limit` targets, then `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._durations: dict[str, Histogram] = {}
        self._other = DURATION.labels(OTHER)

    def label(self, target: str) -> str:
        """Return the label value of a target."""
        return target if self.duration(target) is not self._other else OTHER

    def duration(self, target: str) -> Histogram:
        """Return the histogram of a target; it is cached."""
        histogram = self._durations.get(target)
        if histogram is None:
            if len(self._durations) >= self._limit:
                return self._other
            histogram = self._durations[target] = DURATION.labels(target)
        return histogram
