"""Reports circuit breakers: a gauge, a counter and a log line."""

import logging
from collections import Counter as Tally
from collections.abc import Callable
from typing import Final

from prometheus_client import Counter, Gauge

from shared.resilience.lanes import INITIAL_OPEN_TIME, Breaker

logger = logging.getLogger(__name__)

OPEN: Final = Gauge(
    "ringback_breaker_open",
    "Open circuit breakers of a target.",
    ["target_url"],
    multiprocess_mode="livesum",
)
_CHANGES: Final = Counter("ringback_breaker_changes", "Changes of circuit breakers.", ["state"])
CHANGES: Final = {state: _CHANGES.labels(state.value) for state in Breaker}


def breaker_observer(label: Callable[[str], str]) -> Callable[[str, Breaker, float], None]:
    """Return the observer of changes. `label` maps a target to its label target_url."""
    opened: Tally[str] = Tally()  # several clients and targets can share a label

    def observe(target: str, breaker: Breaker, open_time: float) -> None:
        name = label(target)
        if breaker is Breaker.CLOSED:
            opened[name] -= 1
        elif open_time == INITIAL_OPEN_TIME:  # a failed probe opens it again for longer
            opened[name] += 1
        OPEN.labels(name).set(opened[name])
        CHANGES[breaker].inc()
        logger.warning("breaker %s", breaker, extra={"target_url": target, "open_time": open_time})

    return observe
