"""What the callback sender counts; docs/metrics.md explains each."""

from typing import Final

from prometheus_client import Counter, Histogram

CALLBACKS: Final = Counter("callback", "Tries to deliver a callback.", ["status"])
SUCCESS: Final = CALLBACKS.labels("success")
ERROR: Final = CALLBACKS.labels("error")
DURATION: Final = Histogram(
    "callback_duration_seconds",
    "Seconds that one try took.",
    ["target_url"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
HMAC_ERRORS: Final = Counter("hmac_errors", "Callbacks that could not be signed.")

OTHER: Final = "other"


class Labels:
    """Bounds the values of the label `target_url`: the first `most` targets, then `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._durations: dict[str, Histogram] = {}
        self._other = DURATION.labels(OTHER)

    def of(self, target: str) -> str:
        """The label value of a target."""
        return target if self._known(target) is not self._other else OTHER

    def duration(self, target: str) -> Histogram:
        """The target's histogram, looked up once."""
        return self._known(target)

    def _known(self, target: str) -> Histogram:
        found = self._durations.get(target)
        if found is None:
            if len(self._durations) >= self._most:
                return self._other
            found = self._durations[target] = DURATION.labels(target)
        return found
