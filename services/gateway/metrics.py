"""What the gateway counts; docs/metrics.md explains each."""

from typing import Final

from prometheus_client import Counter, Histogram

REQUESTS: Final = Counter(
    "ringback_http_requests",
    "HTTP requests answered.",
    ["route", "method", "status"],
)
DURATION: Final = Histogram(
    "ringback_http_request_duration_seconds",
    "Seconds from a request's head to its answer.",
    ["route", "method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

# The label of what no route matches: anybody may have named it.
UNMATCHED: Final = "unmatched"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"})


class Requests:
    """Counts requests; a label is looked up once. Routes are few, statuses and methods bounded."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request has been answered."""
        if method not in _METHODS:
            method = "other"
        counter = self._counters.get((route, method, status))
        if counter is None:
            counter = REQUESTS.labels(route, method, str(status))
            self._counters[route, method, status] = counter
        counter.inc()
        duration = self._durations.get((route, method))
        if duration is None:
            duration = self._durations[route, method] = DURATION.labels(route, method)
        duration.observe(seconds)
