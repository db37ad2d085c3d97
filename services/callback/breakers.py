"""Reports circuit breakers as metrics and log lines, and to the journal as facts."""

import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pydantic import BaseModel

from shared.amqp.publisher import new_id
from shared.clock import Clock
from shared.contracts.journal_facts import BreakerClosed, BreakerOpened
from shared.resilience.lanes import Breaker, Lane

Observer = Callable[[Lane, Breaker, float], None]


def breaker_reporter(
    observe: Callable[[str, Breaker, float], None],
    publish: Callable[[Sequence[BaseModel]], None],
    clock: Clock,
) -> Observer:
    """Return the observer for `Lanes`, which calls `observe` and publishes a fact."""
    process = f"{socket.gethostname()}:{os.getpid()}"

    def report(lane: Lane, breaker: Breaker, open_time: float) -> None:
        observe(lane.target, breaker, open_time)
        fact = {
            "fact_id": new_id(),
            "at": datetime.fromtimestamp(clock.now(), UTC),
            "target": lane.target,
            "client_id": lane.client,
            "process": process,
        }
        if breaker is Breaker.OPEN:
            publish([BreakerOpened.model_validate(fact | {"open_seconds": open_time})])
        else:
            publish([BreakerClosed.model_validate(fact)])

    return report
