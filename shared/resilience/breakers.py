"""What is told of circuit breakers: a gauge, a count, a line of log."""

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
CHANGES: Final = Counter(
    "ringback_breaker_changes", "Circuit breakers that opened or closed.", ["state"]
)


def breaker_observer(label: Callable[[str], str]) -> Callable[[str, Breaker, float], None]:
    """What `Lanes` calls as `changed`; `label` gives a target's value of the label target_url."""

    def changed(target: str, breaker: Breaker, pause: float) -> None:
        OPEN.labels(label(target)).set(breaker is Breaker.OPEN)
        CHANGES.labels(breaker.value).inc()
        logger.warning("breaker %s", breaker, extra={"target_url": target, "pause": pause})

    return changed
