"""Reports circuit breakers: a gauge, a counter and a log line."""

import logging
from collections.abc import Callable
from typing import Final

from prometheus_client import Counter, Gauge

from shared.resilience.lanes import Breaker

logger = logging.getLogger(__name__)

OPEN: Final = Gauge(
    "ringback_breaker_open",
    "1 while a target's circuit breaker is open.",
    ["target_url"],
    multiprocess_mode="livemax",
)
_CHANGES: Final = Counter("ringback_breaker_changes", "Changes of circuit breakers.", ["state"])
CHANGES: Final = {state: _CHANGES.labels(state.value) for state in Breaker}


def breaker_observer(label: Callable[[str], str]) -> Callable[[str, Breaker, float], None]:
    """Return the observer for `Lanes`. `label` maps a target to its label target_url."""

    def observe(target: str, breaker: Breaker, open_time: float) -> None:
        OPEN.labels(label(target)).set(breaker is Breaker.OPEN)
        CHANGES[breaker].inc()
        logger.warning("breaker %s", breaker, extra={"target_url": target, "open_time": open_time})

    return observe
