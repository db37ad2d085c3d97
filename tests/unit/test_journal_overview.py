"""N6, N8: the findings of the overview, and the read that all callers share."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from services.journal.overview.cache import FACTOR, LIFETIME, MAX_LIFETIME, MAX_VALUES, Shared
from services.journal.overview.findings import findings, service_of
from shared.contracts.journal import Gap
from shared.contracts.journal_figures import (
    Breaker,
    Overview,
    QueueFigures,
    Severity,
    TargetHealth,
)
from shared.registry import SERVICES
from shared.topology import WORK_QUEUES

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
TARGET = "https://example.com:443"


def overview(**fields: Any) -> Overview:
    healthy: dict[str, Any] = {
        "at": NOW,
        "delivered": 100,
        "failed": 0,
        "p50": 0.02,
        "p99": 0.3,
        "minutes": [],
        "targets": [health(100, 0)],
        "queues": [queue()],
        "waiting": 5,
        "due": 0,
        "oldest_due": 0.0,
        "breakers": [],
        "paused_targets": [],
        "running_jobs": 0,
        "lag": 0.1,
        "gaps": [],
        "findings": [],
    }
    return Overview(**healthy | fields)


def queue(**fields: Any) -> QueueFigures:
    usual: dict[str, Any] = {
        "queue": "callbacks",
        "waiting": 10,
        "tiers": {"1s": 3},
        "dead": 0,
        "consumers": 2,
    }
    return QueueFigures(**usual | fields)


def health(delivered: int, failed: int) -> TargetHealth:
    return TargetHealth(
        target=TARGET,
        delivered=delivered,
        failed=failed,
        p50=None,
        p99=None,
        paused=False,
        breaker_open=False,
        lane_full=False,
    )


def breaker(process: str) -> Breaker:
    return Breaker(target=TARGET, client_id=None, process=process, opened_at=NOW, until=NOW)


def gap(messages: int | None) -> Gap:
    return Gap(at=NOW, first_offset=1, last_offset=9, messages=messages, reason="backlog_exceeded")


def test_n6_a_healthy_system_has_no_findings() -> None:
    assert findings(overview()) == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"oldest_due": None}, "The scheduler does not respond. Scheduled callbacks wait."),
        (
            {"oldest_due": 90.2, "due": 1200},
            "1,200 scheduled callbacks are due but not dispatched, the oldest for 90 s.",
        ),
        (
            {"queues": None},
            "The depths of the queues are unknown, because the broker does not respond.",
        ),
        (
            {"queues": [queue(consumers=0, waiting=1)]},
            "No process consumes `callbacks`. 1 message is waiting.",
        ),
        ({"queues": [queue(waiting=20_000)]}, "20,000 messages are waiting in `callbacks`."),
        ({"queues": [queue(dead=2)]}, "2 dead letters are in `callbacks.dead`."),
        (
            {"lag": 31.0},
            "The journal is 31 s behind. The figures on its pages are old.",
        ),
        (
            {"gaps": [gap(7), gap(2)]},
            "9 messages are missing in the journal since yesterday. Deliveries are not affected.",
        ),
        (
            {"gaps": [gap(None)]},
            (
                "Some messages are missing in the journal since yesterday."
                " Deliveries are not affected."
            ),
        ),
        (
            {"breakers": [breaker("a"), breaker("b")], "targets": [health(0, 50)]},
            f"The circuit breaker of {TARGET} is open in 2 processes.",
        ),
        ({"targets": [health(9, 9)]}, f"9 of 18 attempts to {TARGET} failed."),
        (
            {"paused_targets": [TARGET]},
            f"{TARGET} is paused. Its callbacks wait in the retry tiers.",
        ),
    ],
)
def test_n6_each_problem_is_one_finding_with_an_action(
    fields: dict[str, Any], problem: str
) -> None:
    [finding] = findings(overview(**fields))
    assert finding.problem == problem
    assert finding.action.endswith(".")


def test_n6_what_is_normal_is_no_finding() -> None:
    assert findings(overview(targets=[health(0, 9)])) == []
    assert findings(overview(targets=[health(51, 49)])) == []
    assert findings(overview(queues=[queue(waiting=0, consumers=0)], lag=None)) == []


def test_n6_errors_are_before_warnings() -> None:
    found = findings(overview(queues=[queue(dead=1), queue(consumers=0)], paused_targets=[TARGET]))
    severities = [finding.severity for finding in found]
    assert severities == [Severity.ERROR, Severity.WARNING, Severity.WARNING]


def test_every_work_queue_has_a_service() -> None:
    assert {service_of(work.name) for work in WORK_QUEUES} <= SERVICES.keys()


class Source:
    """Counts the reads of a value. A read takes `seconds` of its clock."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.reads = 0
        self.shared: Shared[int, str] = Shared(self.read, lambda: self.now)

    async def read(self, key: int) -> str:
        self.reads += 1
        await asyncio.sleep(0)
        self.now += self.seconds
        return f"{key}/{self.reads}"


async def test_n6_fifty_callers_cost_one_read_a_second() -> None:
    source = Source()
    values = await asyncio.gather(*(source.shared.get(60) for _ in range(50)))
    assert set(values) == {"60/1"}
    source.now += LIFETIME - 0.01
    assert await source.shared.get(60) == "60/1"
    source.now += 0.01
    assert await source.shared.get(60) == "60/2"
    assert await source.shared.get(5) == "5/3"


@pytest.mark.parametrize(
    ("seconds", "lifetime"), [(0.1, 0.1 * FACTOR), (2.0, MAX_LIFETIME), (0.01, LIFETIME)]
)
async def test_n6_a_slow_read_is_used_for_longer(seconds: float, lifetime: float) -> None:
    source = Source(seconds)
    await source.shared.get(1)
    source.now += lifetime - 0.001
    await source.shared.get(1)
    assert source.reads == 1
    source.now += 0.002
    await source.shared.get(1)
    assert source.reads == 2


async def test_n6_a_failed_or_cancelled_read_is_repeated_by_the_next_caller() -> None:
    reads, started = 0, asyncio.Event()

    async def fail(_: int) -> str:
        nonlocal reads
        reads += 1
        if reads == 1:
            raise OSError
        if reads == 2:
            started.set()
            await asyncio.Event().wait()
        return "value"

    shared: Shared[int, str] = Shared(fail, lambda: 0.0)
    with pytest.raises(OSError, match=r"^$"):
        await shared.get(1)
    abandoned = asyncio.create_task(shared.get(1))
    waiting = asyncio.create_task(shared.get(1))
    await started.wait()
    abandoned.cancel()
    assert await waiting == "value"


async def test_n6_few_values_are_kept() -> None:
    source = Source()
    for key in range(MAX_VALUES + 1):
        await source.shared.get(key)
    await source.shared.get(MAX_VALUES)
    assert source.reads == MAX_VALUES + 1
    await source.shared.get(0)
    assert source.reads == MAX_VALUES + 2
