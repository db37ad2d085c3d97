"""The metrics of the journal. docs/metrics.md explains them."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_FACTS: Final = Counter("ringback_journal_facts", "Facts of the journal by outcome.", ["outcome"])
STORED: Final = _FACTS.labels("stored")
REPEATED: Final = _FACTS.labels("repeated")
EXPIRED: Final = _FACTS.labels("expired")
UNKNOWN: Final = _FACTS.labels("unknown")
INVALID: Final = _FACTS.labels("invalid")
MISSED: Final = Counter(
    "ringback_journal_missed_messages", "Messages with facts that the journal has missed."
)
LAG: Final = Gauge(
    "ringback_journal_lag_seconds",
    "Seconds that the journal is behind.",
    multiprocess_mode="livemax",
)
BEHIND: Final = Gauge(
    "ringback_journal_lag_messages",
    "Messages in the stream not stored yet.",
    multiprocess_mode="livemax",
)
BATCH: Final = Histogram(
    "ringback_journal_batch_seconds",
    "Seconds to store one batch.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
REINDEXED: Final = Counter(
    "ringback_journal_reindexed_queues", "Dead-letter queues that were read to correct the index."
)
