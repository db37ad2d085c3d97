"""Durations of attempts in buckets, and quantiles of them. Pure functions.

Buckets add up over minutes, targets and clients, so a page needs no single attempts.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

# Upper bounds in seconds. Two neighbours differ by a factor of at most two, so a quantile is at
# most that far off. The last bucket holds longer ones, up to the longest timeout of an attempt.
BOUNDS: Final = (
    *(0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 30.0, 60.0, 120.0),
)
MAX_DURATION: Final = 300.0
BUCKETS: Final = len(BOUNDS) + 1


def bucket(duration: float) -> int:
    """Return the index of the bucket of a duration."""
    return bisect_left(BOUNDS, duration)


def quantile(counts: Sequence[int], fraction: float) -> float | None:
    """Return the duration below which this fraction lies, interpolated; None without attempts."""
    total = sum(counts)
    if not total:
        return None
    rank = fraction * total
    below = 0
    for index, count in enumerate(counts):
        if count and below + count >= rank:
            low = BOUNDS[index - 1] if index else 0.0
            high = BOUNDS[index] if index < len(BOUNDS) else MAX_DURATION
            return low + (high - low) * max(rank - below, 0.0) / count
        below += count
    return MAX_DURATION
