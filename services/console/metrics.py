"""Metrics of the console; docs/metrics.md describes each."""

from typing import Final

from prometheus_client import Counter, Histogram

REQUESTS: Final = Counter(
    "ringback_console_requests",
    "Responses to browsers.",
    ["page", "method", "status"],
)
DURATION: Final = Histogram(
    "ringback_console_request_duration_seconds",
    "Seconds from the head of a request to its response.",
    ["page"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
SIGN_INS: Final = Counter(
    "ringback_console_sign_ins",
    "Sign-ins that ended, by result: `signed_in`, or the reason of the failure.",
    ["result"],
)

# The label of requests that match no page; their paths could take any value.
UNMATCHED: Final = "unmatched"
_METHODS: Final = frozenset({"GET", "HEAD", "POST"})


def observe(page: str, method: str, status: int, seconds: float) -> None:
    """Count one response and its duration."""
    REQUESTS.labels(page, method if method in _METHODS else "other", str(status)).inc()
    DURATION.labels(page).observe(seconds)
