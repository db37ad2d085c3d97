"""Decides when the messages of a posting may be published."""

from datetime import datetime, timedelta
from typing import Final

from services.mailings.campaigns.windows import Window, current_or_next
from services.mailings.records import Claim, Cohort
from services.mailings.store import Store
from shared.clock import Clock
from shared.contracts.schedules import time_zone

# Recipients on a page: messages that are added and published at a time.
PAGE_SIZE: Final = 500
_SECONDS_PER_MINUTE: Final = 60


class PostingExpiredError(Exception):
    """The posting has expired."""


class SliceDeferredError(Exception):
    """The slice cannot continue for `delay` seconds, although the posting is valid."""

    def __init__(self, delay: float, reason: str | None = None) -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class Timing:
    """When one claim may publish: before its expiry, in local hours, at the rate of its mailing.

    window: in which its messages may be sent; None: at any time.
    """

    def __init__(self, claim: Claim, store: Store, clock: Clock) -> None:
        self._expires_at = claim.expires_at
        self._cohort = claim.content if isinstance(claim.content, Cohort) else None
        self._store = store
        self._clock = clock
        # The time by the clock of the database is the time of the claim and what has passed since.
        self._claimed_at = claim.at
        self._claimed = clock.monotonic()
        self._permitted = self._claimed
        self.window = self._window(claim.at)

    @property
    def page_size(self) -> int:
        """Return the recipients on a page: at most what the rate permits in a second."""
        rate = self._cohort.rate_per_minute if self._cohort else None
        return PAGE_SIZE if rate is None else min(PAGE_SIZE, -(-rate // _SECONDS_PER_MINUTE))

    @property
    def delay(self) -> float:
        """Return the seconds until the rate permits more messages."""
        return max(0.0, self._permitted - self._clock.monotonic())

    def check(self) -> None:
        """Check that messages may be published now.

        Raises:
            PostingExpiredError: the posting has expired.
            SliceDeferredError: the local hours are over, or have not begun.
        """
        now = self._claimed_at + timedelta(seconds=self._clock.monotonic() - self._claimed)
        if self._expires_at is not None and now >= self._expires_at:
            raise PostingExpiredError
        if self.window is not None and not self.window.opens <= now < self.window.closes:
            raise self._closed(now)

    async def pace(self, messages: int) -> bool:
        """Return whether there is a rate, after taking these messages from it.

        Raises:
            SliceDeferredError: the rate permits none now.
        """
        if self._cohort is None or self._cohort.rate_per_minute is None or not messages:
            return False
        permitted, seconds = await self._store.pace(self._cohort.mailing_id, messages)
        if not permitted:
            raise SliceDeferredError(seconds)
        self._permitted = self._clock.monotonic() + seconds
        return True

    def _window(self, at: datetime) -> Window | None:
        if self._cohort is None or self._cohort.hours is None or self._cohort.timezone is None:
            return None
        return current_or_next(self._cohort.hours, time_zone(self._cohort.timezone), at)

    def _closed(self, now: datetime) -> SliceDeferredError:
        """Return the error that defers a slice to the next opening, or to its expiry."""
        window = self._window(now)
        opens = now if window is None else window.opens
        until = opens if self._expires_at is None else min(opens, self._expires_at)
        return SliceDeferredError((until - now).total_seconds(), f"the local hours begin {opens}")
