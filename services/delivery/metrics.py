"""Metrics of delivery; docs/metrics.md explains each."""

from typing import Final

from prometheus_client import Counter, Histogram

MESSAGES: Final = Counter(
    "ringback_messages", "Attempts to send a message, by outcome.", ["channel", "outcome"]
)
REPEATS: Final = Counter(
    "ringback_message_repeats", "Duplicates of messages that were already sent.", ["channel"]
)
DURATION: Final = Histogram(
    "ringback_message_duration_seconds",
    "Seconds that a successful attempt took.",
    ["channel"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
