"""How long an answer asks to wait. Pure."""

from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from shared.topology import TIERS

# The answers whose `Retry-After` is honoured.
RETRY_AFTER_STATUSES: Final = frozenset(
    {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
)
MAX_DELAY: Final = float(TIERS[-1].seconds)


def parse_retry_after(retry_after: str | None, *, now: float) -> float:
    """What `Retry-After` asks for (RFC 9110: seconds or a date), in 0 … 3600; nonsense is 0."""
    if retry_after is None:
        return 0.0
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        # Ten digits are three centuries; more would only make the number costly to read.
        return min(float(text[:10]), MAX_DELAY)
    try:
        date = parsedate_to_datetime(text)
        # The oldest of the three forms names no zone: all of them are UTC.
        wait = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), MAX_DELAY)
