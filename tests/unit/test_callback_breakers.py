"""N8: changed breakers and full lanes are reported to the journal, with client and process."""

import os
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from services.callback.breakers import breaker_reporter, lane_reporter
from shared.clock import SystemClock
from shared.resilience.lanes import Breaker, Lane

TARGET = "https://example.com:443"


def test_n8_a_change_of_a_breaker_is_a_fact() -> None:
    observed: list[tuple[str, Breaker, float]] = []
    facts: list[Any] = []

    def publish(batch: Sequence[BaseModel]) -> None:
        facts.extend(batch)

    report = breaker_reporter(lambda *change: observed.append(change), publish, SystemClock())
    report(Lane(TARGET, "shop"), Breaker.OPEN, 4.0)
    report(Lane(TARGET), Breaker.CLOSED, 0.0)

    assert observed == [(TARGET, Breaker.OPEN, 4.0), (TARGET, Breaker.CLOSED, 0.0)]
    opened, closed = facts
    assert (opened.type, opened.target, opened.client_id) == (
        "target.breaker_opened",
        TARGET,
        "shop",
    )
    assert opened.open_seconds == 4.0
    assert (closed.type, closed.client_id) == ("target.breaker_closed", None)
    assert opened.process == closed.process
    assert opened.process.endswith(f":{os.getpid()}")
    assert abs(opened.at.timestamp() - time.time()) < 60
    assert opened.fact_id != closed.fact_id


def test_n8_a_full_lane_is_a_fact() -> None:
    facts: list[Any] = []
    report = lane_reporter(facts.extend, SystemClock())
    report(Lane(TARGET, "shop", limit=4, in_flight=3), "lane full")

    [fact] = facts
    assert (fact.type, fact.target, fact.client_id) == ("target.lane_full", TARGET, "shop")
    assert (fact.reason, fact.in_flight, fact.limit) == ("lane full", 3, 4)
    assert fact.process.endswith(f":{os.getpid()}")
