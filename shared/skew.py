"""How far the clocks of callback services are ahead of the database's."""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

logger = logging.getLogger(__name__)

# Seconds that a clock may be ahead without effect. Clocks with NTP differ by milliseconds.
MIN_SKEW: Final = 5.0
# Seconds beyond which a clock is not followed.
MAX_SKEW: Final = 86_400.0


class ClockSkew:
    """How far the clocks of callback services are ahead of the database's.

    A fact from the future shows it. Callbacks expire later by this time, so that a host whose clock
    is ahead still sends them. `seconds` never shrinks, because other hosts may be correct. `report`
    gets it when it grows.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self.seconds = 0.0
        self._report = report

    def observe(self, at: datetime, now: datetime) -> None:
        """Notice the time of a fact that was received before `now`, the database's time."""
        ahead = min((at - now).total_seconds(), MAX_SKEW)
        if ahead > self.seconds + MIN_SKEW:
            self.seconds = ahead
            self._report(ahead)
            logger.warning("callback service clock ahead", extra={"ahead": round(ahead, 3)})
