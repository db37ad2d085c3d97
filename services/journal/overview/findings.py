"""What is wrong, in plain sentences, and what to do: pure functions, no IO."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from shared.contracts.journal_figures import Finding, Overview, QueueFigures, Severity
from shared.topology import CALLBACKS, EVENTS, POSTINGS, SCHEDULES, USER_EVENTS

# Seconds. The scheduler dispatches within one, also during a burst.
MAX_OLDEST_DUE: Final = 60.0
# Messages. A callback process delivers as many in a few seconds.
MAX_WAITING: Final = 10_000
# Seconds. The journal stores facts within one.
MAX_LAG: Final = 30.0
# Attempts of a target below which its errors say nothing, and the part of them that is too many.
MIN_ATTEMPTS: Final = 10
MAX_ERRORS: Final = 0.5
# Findings of one kind. More would hide the others.
MAX_OF_A_KIND: Final = 10

_SERVICES: Final = {
    CALLBACKS: "callback",
    SCHEDULES: "scheduler",
    EVENTS: "ingestion",
    POSTINGS: "mailings",
    USER_EVENTS: "subscriptions",
    "messages": "delivery",
}


def findings(overview: Overview) -> list[Finding]:
    """Return the findings about figures, the most urgent first."""
    found = [
        *_scheduler(overview),
        *_queues(overview),
        *_journal(overview),
        *_targets(overview),
    ]
    return sorted(found, key=lambda finding: finding.severity is not Severity.ERROR)


def service_of(queue: str) -> str:
    """Return the service that consumes a work queue."""
    return _SERVICES.get(queue) or _SERVICES.get(head := queue.partition(".")[0]) or head


def _scheduler(overview: Overview) -> Iterator[Finding]:
    if overview.oldest_due is None:
        yield _error(
            "The scheduler does not respond. Scheduled callbacks wait.",
            "Start it with `ringback run scheduler`. If it runs, read its log.",
        )
    elif overview.oldest_due > MAX_OLDEST_DUE:
        yield _error(
            f"{_count(overview.due or 0, 'scheduled callback')} due but not dispatched, the oldest"
            f" for {overview.oldest_due:.0f} s.",
            "Check that the queue `callbacks` is consumed, and start more schedulers.",
        )


def _queues(overview: Overview) -> Iterator[Finding]:
    if overview.queues is None:
        yield _warning(
            "The depths of the queues are unknown, because the broker does not respond.",
            "Check the broker with `ringback doctor`.",
        )
        return
    for queue in overview.queues:
        yield from _queue(queue)


def _queue(queue: QueueFigures) -> Iterator[Finding]:
    service = service_of(queue.queue)
    if queue.waiting and not queue.consumers:
        yield _error(
            f"No process consumes `{queue.queue}`. {_count(queue.waiting, 'message')} waiting.",
            f"Start one with `ringback run {service}`.",
        )
    elif queue.waiting > MAX_WAITING:
        yield _warning(
            f"{_count(queue.waiting, 'message')} waiting in `{queue.queue}`.",
            f"Start more processes with `ringback run {service}`.",
        )
    if queue.dead:
        yield _warning(
            f"{_count(queue.dead, 'dead letter')} in `{queue.queue}.dead`.",
            "Look at their reasons, and then redrive or discard them.",
        )


def _journal(overview: Overview) -> Iterator[Finding]:
    if overview.lag is not None and overview.lag > MAX_LAG:
        yield _warning(
            f"The journal is {overview.lag:.0f} s behind. The figures on its pages are old.",
            "Check that a journal process runs, and that its database is fast enough.",
        )
    if overview.gaps:
        known = sum(gap.messages or 0 for gap in overview.gaps)
        missed = _count(known, "message") if known else "Some messages are"
        yield _warning(
            f"{missed} missing in the journal since yesterday. Deliveries are not affected.",
            "Keep a journal process running, or raise RINGBACK_JOURNAL_BACKLOG.",
        )


def _targets(overview: Overview) -> Iterator[Finding]:
    processes = Counter(breaker.target for breaker in overview.breakers)
    for target, count in processes.most_common(MAX_OF_A_KIND):
        yield _warning(
            f"The circuit breaker of {target} is open in {_number(count, 'process', 'processes')}.",
            "Check the receiver. Until it works, its callbacks wait in the retry tiers.",
        )
    failing = [
        health
        for health in overview.targets
        if health.target not in processes
        and health.delivered + health.failed >= MIN_ATTEMPTS
        and health.failed >= MAX_ERRORS * (health.delivered + health.failed)
    ]
    for health in failing[:MAX_OF_A_KIND]:
        yield _warning(
            f"{health.failed:,} of {health.delivered + health.failed:,} attempts to"
            f" {health.target} failed.",
            "Look at the reasons of its attempts, and check the receiver.",
        )
    for target in overview.paused_targets[:MAX_OF_A_KIND]:
        yield _warning(
            f"{target} is paused. Its callbacks wait in the retry tiers.",
            "Resume it when the receiver works again.",
        )


def _error(problem: str, action: str) -> Finding:
    return Finding(severity=Severity.ERROR, problem=problem, action=action)


def _warning(problem: str, action: str) -> Finding:
    return Finding(severity=Severity.WARNING, problem=problem, action=action)


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _count(count: int, noun: str) -> str:
    """Return a count with its noun and verb: `1 message is`, `2 messages are`."""
    return f"{_number(count, noun, f'{noun}s')} {'is' if count == 1 else 'are'}"
