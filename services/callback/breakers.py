"""Reports circuit breakers as metrics, log lines and facts, and full lanes as facts."""

import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from shared.amqp.publisher import new_id
from shared.clock import Clock
from shared.contracts.journal_facts import BreakerClosed, BreakerOpened, LaneFull
from shared.resilience.lanes import Breaker, Lane

Observer = Callable[[Lane, Breaker, float], None]
Publish = Callable[[Sequence[BaseModel]], None]


def breaker_reporter(
    observe: Callable[[str, Breaker, float], None],
    publish: Publish,
    clock: Clock,
) -> Observer:
    """Return the observer for `Lanes`, which calls `observe` and publishes a fact."""

    def report(lane: Lane, breaker: Breaker, open_time: float) -> None:
        observe(lane.target, breaker, open_time)
        fact = _fields(lane, clock)
        if breaker is Breaker.OPEN:
            publish([BreakerOpened.model_validate(fact | {"open_seconds": open_time})])
        else:
            publish([BreakerClosed.model_validate(fact)])

    return report


def lane_reporter(publish: Publish, clock: Clock) -> Callable[[Lane, str], None]:
    """Return the function for `Lanes` that publishes a fact about each full lane."""

    def report(lane: Lane, reason: str) -> None:
        state = {"reason": reason, "in_flight": lane.in_flight, "limit": lane.limit}
        publish([LaneFull.model_validate(_fields(lane, clock) | state)])

    return report


def _fields(lane: Lane, clock: Clock) -> dict[str, Any]:
    return {
        "fact_id": new_id(),
        "at": datetime.fromtimestamp(clock.now(), UTC),
        "target": lane.target,
        "client_id": lane.client,
        "process": f"{socket.gethostname()}:{os.getpid()}",
    }
