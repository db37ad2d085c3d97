"""The metrics of mailings. docs/metrics.md explains each."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from shared.contracts.posting_requests import MessageState
from shared.registry import CHANNELS

POSTINGS: Final = Counter("ringback_postings", "Postings, by outcome.", ["outcome"])
# `increase()` misses the first count of a series that does not exist before it.
for _outcome in ("accepted", "repeated", "invalid", "expanded", "failed", "expired", "done"):
    POSTINGS.labels(_outcome)
_MESSAGES: Final = Counter(
    "ringback_posting_messages",
    "Messages of postings, by outcome.",
    ["channel", "outcome"],
)
MESSAGES: Final = {
    (channel, status): _MESSAGES.labels(channel, status.value)
    for channel in CHANNELS
    for status in MessageState
}
PAGE: Final = Histogram(
    "ringback_posting_page_seconds",
    "One page of recipients: `fetch` until it arrives, `publish` until its checkpoint.",
    ["step"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
FETCH: Final = PAGE.labels("fetch")
PUBLISH: Final = PAGE.labels("publish")
BACKPRESSURE: Final = Gauge(
    "ringback_posting_backpressure",
    "1 while expansion pauses because too many messages wait for delivery.",
    ["queue"],
    multiprocess_mode="livemax",
)
