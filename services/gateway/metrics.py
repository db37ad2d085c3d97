"""Metrics of the gateway; docs/metrics.md describes each."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

REQUESTS: Final = Counter(
    "ringback_http_requests",
    "HTTP responses sent.",
    ["route", "method", "status"],
)
DURATION: Final = Histogram(
    "ringback_http_request_duration_seconds",
    "Seconds from the head of a request to its response.",
    ["route", "method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

OPEN_POLLS: Final = Gauge(
    "ringback_open_polls",
    "Open polls and streams.",
    multiprocess_mode="livesum",
)

# The label of requests that match no route; their paths could take any value.
UNMATCHED: Final = "unmatched"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"})


class Requests:
    """Counts requests. Labels are cached, and their number is bounded."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one response and its duration."""
        if method not in METHODS:
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
