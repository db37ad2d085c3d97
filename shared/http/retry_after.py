"""The header `Retry-After` of responses. Pure."""

from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from shared.topology import TIERS

# The statuses whose `Retry-After` is honoured.
RETRY_AFTER_STATUSES: Final = frozenset(
    {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
)
MAX_DELAY: Final = float(TIERS[-1].seconds)


def parse_retry_after(retry_after: str | None, *, now: float) -> float:
    """Return the delay in seconds, from 0 to 3600; an absent or invalid header gives 0.

    The header holds seconds or a date (RFC 9110).
    """
    if retry_after is None:
        return 0.0
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        # Ten digits are three centuries. More digits would only cost time.
        return min(float(text[:10]), MAX_DELAY)
    try:
        date = parsedate_to_datetime(text)
        # The oldest of the three date formats has no zone; all dates are in UTC.
        delay = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(delay, 0.0), MAX_DELAY)
