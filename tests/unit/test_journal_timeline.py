"""N6: the timeline of a callback, through every outcome."""

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from click import unstyle

from services.cli.timeline import picture
from services.journal.attempts.timeline import timeline
from shared.contracts.journal import AttemptOutcome, Entry, EntryKind
from shared.contracts.journal_reads import Step, StepKind

SCHEDULE = UUID("5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11")
START = datetime(2026, 11, 20, 12, tzinfo=UTC)
TARGET = "https://example.com:443"
_sequence = count(1)


def entry(second: float, kind: EntryKind, **fields: Any) -> Entry:
    given: dict[str, Any] = {
        "seq": next(_sequence),
        "at": START + timedelta(seconds=second),
        "kind": kind,
        "callback_id": str(SCHEDULE),
        "client_id": "shop",
    }
    return Entry(**given | fields)


def attempt(second: float, number: int, outcome: AttemptOutcome, **fields: Any) -> Entry:
    given: dict[str, Any] = {"attempt": number, "outcome": outcome, "duration": 0.25}
    if outcome is AttemptOutcome.DELIVERED:
        given["status_code"] = 200
    return entry(second, EntryKind.ATTEMPT, **given | {"target": TARGET} | fields)


def later(second: float) -> datetime:
    return START + timedelta(seconds=second)


def kinds(steps: list[Step]) -> list[StepKind]:
    return [step.kind for step in steps]


def test_n6_a_delivery_after_a_quick_retry() -> None:
    steps = timeline(
        [
            entry(0, EntryKind.SCHEDULED, next_at=later(5)),
            entry(5, EntryKind.DISPATCHED, dispatch=1, detail={"lag": 0.012}),
            attempt(
                5.3,
                1,
                AttemptOutcome.FAILED,
                dispatch=1,
                status_code=503,
                reason="responded with status 503.",
                next_at=later(10),
            ),
            attempt(10.2, 2, AttemptOutcome.DELIVERED, dispatch=1),
            entry(10.3, EntryKind.NOTIFIED, attempt=2),
        ]
    )
    assert [(step.kind, step.text) for step in steps] == [
        (StepKind.SCHEDULED, "Scheduled."),
        (StepKind.DISPATCHED, "Dispatch 1 was published, 0.012 s after the due time."),
        (
            StepKind.ATTEMPT,
            "Attempt 1 failed with status 503 after 0.250 s: responded with status 503.",
        ),
        (StepKind.TIER, "Waits in a retry tier for the next attempt."),
        (StepKind.ATTEMPT, "Attempt 2 was delivered with status 200 after 0.250 s."),
        (StepKind.NOTIFIED, "Ended: notified after 2 attempts."),
    ]
    assert [step.until for step in steps] == [later(5), None, None, later(10), None, None]


def test_n6_failed_dispatches_and_main_retries_until_it_fails_for_good() -> None:
    steps = timeline(
        [
            entry(0, EntryKind.SCHEDULED, detail={"recurs": True}),
            entry(1, EntryKind.DISPATCHED, dispatch=1),
            attempt(2, 1, AttemptOutcome.DISPATCH_FAILED, dispatch=1, reason="connection refused"),
            entry(2.1, EntryKind.RETRYING, reason="connection refused", next_at=later(62)),
            entry(62, EntryKind.DISPATCHED, dispatch=2),
            entry(63, EntryKind.DISPATCH_FAILED, dispatch=2, reason="the lane stayed full"),
            entry(63.1, EntryKind.RESCHEDULED, next_at=later(80)),
            entry(80, EntryKind.FAILED, attempt=1, reason="stopped"),
        ]
    )
    assert kinds(steps) == [
        StepKind.SCHEDULED,
        StepKind.DISPATCHED,
        StepKind.ATTEMPT,
        StepKind.RETRY,
        StepKind.DISPATCHED,
        StepKind.DISPATCH_FAILED,
        StepKind.RESCHEDULED,
        StepKind.FAILED,
    ]
    assert steps[0].text == "Scheduled; it recurs."
    assert steps[3].until == later(62)
    assert steps[5].text == "Dispatch 2 ended without a further attempt: the lane stayed full."
    assert steps[7].text == "Ended: failed for good after 1 attempt: stopped."


def test_n6_a_dead_letter_is_redriven_replayed_and_discarded() -> None:
    steps = timeline(
        [
            attempt(1, 1, AttemptOutcome.DEAD, status_code=410, reason="gone"),
            entry(2, EntryKind.REDRIVEN, detail={"actor": "Omar"}),
            attempt(3, 1, AttemptOutcome.DEAD, status_code=410, reason="gone"),
            entry(4, EntryKind.REPLAYED, target=TARGET, detail={"actor": "Ada"}),
            attempt(5, 1, AttemptOutcome.DELIVERED),
            entry(6, EntryKind.DISCARDED),
        ]
    )
    assert kinds(steps) == [
        *(StepKind.ATTEMPT, StepKind.DEAD),
        StepKind.REDRIVEN,
        *(StepKind.ATTEMPT, StepKind.DEAD),
        StepKind.REPLAYED,
        StepKind.ATTEMPT,
        StepKind.DISCARDED,
    ]
    assert steps[2].text == "Moved back to its work queue by Omar."
    assert steps[5].text == f"Sent again to {TARGET} by Ada."
    assert steps[7].text == "The dead letter was deleted."


def test_n6_an_expired_and_a_cancelled_callback() -> None:
    reason = "expired at 2026-11-20T12:00:00+00:00"
    assert kinds(timeline([entry(0, EntryKind.DEAD, reason=reason)])) == [StepKind.EXPIRED]
    assert kinds(timeline([entry(0, EntryKind.DISPATCH_FAILED, reason=reason, dispatch=1)])) == [
        StepKind.EXPIRED
    ]
    assert kinds(timeline([entry(0, EntryKind.DEAD, reason="no secret")])) == [StepKind.DEAD]
    assert kinds(timeline([entry(0, EntryKind.CANCELLED)])) == [StepKind.CANCELLED]


def test_n6_an_e_mail_is_sent_at_its_second_attempt_or_not_at_all() -> None:
    own: dict[str, Any] = {"callback_id": None, "message_id": "m-1", "detail": {"channel": "email"}}
    steps = timeline(
        [
            entry(
                1,
                EntryKind.MESSAGE_ATTEMPT_FAILED,
                attempt=1,
                reason="450 busy",
                next_at=later(6),
                **own,
            ),
            entry(6, EntryKind.MESSAGE_SENT, attempt=2, duration=0.1, **own),
        ]
    )
    assert [(step.kind, step.text, step.until) for step in steps] == [
        (StepKind.ATTEMPT, "Attempt 1 failed: 450 busy.", None),
        (StepKind.TIER, "Waits in a retry tier for the next attempt.", later(6)),
        (StepKind.SENT, "Attempt 2: the email was sent.", None),
    ]
    ends = {
        EntryKind.MESSAGE_FAILED: StepKind.FAILED,
        EntryKind.MESSAGE_EXPIRED: StepKind.EXPIRED,
        EntryKind.MESSAGE_RETURNED: StepKind.RETURNED,
        EntryKind.ENDPOINT_DISABLED: None,
    }
    for kind, end in ends.items():
        assert kinds(timeline([entry(0, kind, **own)])) == [end] * (end is not None)


def test_n6_a_cause_is_before_its_effect_although_clocks_differ() -> None:
    """The confirm of the second dispatch arrives after its attempt, and the scheduler is late."""
    steps = timeline(
        [
            attempt(5.1, 1, AttemptOutcome.DELIVERED, dispatch=2),
            entry(5.2, EntryKind.DISPATCHED, dispatch=2),
            entry(5.1, EntryKind.NOTIFIED, attempt=2),
            attempt(4, 1, AttemptOutcome.DISPATCH_FAILED, dispatch=1),
            entry(4.3, EntryKind.DISPATCHED, dispatch=1),
            entry(4.1, EntryKind.SCHEDULED),
        ]
    )
    assert [(step.kind, step.entry.dispatch) for step in steps] == [
        (StepKind.SCHEDULED, None),
        (StepKind.DISPATCHED, 1),
        (StepKind.ATTEMPT, 1),
        (StepKind.DISPATCHED, 2),
        (StepKind.ATTEMPT, 2),
        (StepKind.NOTIFIED, None),
    ]


def test_n6_the_command_draws_a_timeline_and_hides_control_characters() -> None:
    steps = timeline(
        [
            entry(0, EntryKind.SCHEDULED, next_at=later(5)),
            attempt(5, 1, AttemptOutcome.FAILED, reason="\x1b[31mred", next_at=later(10)),
            attempt(10, 2, AttemptOutcome.DELIVERED),
        ]
    )
    story = {"items": [step.model_dump(mode="json") for step in steps], "kept": True}
    assert [unstyle(line) for line in picture(story, unicode=True)] == [
        "2026-11-20 12:00:00.000  ◌  Scheduled.",
        "                         │  until 2026-11-20 12:00:05.000",
        "2026-11-20 12:00:05.000  ✘  Attempt 1 failed after 0.250 s: \\x1b[31mred.",
        "2026-11-20 12:00:05.000  ◌  Waits in a retry tier for the next attempt.",
        "                         │  until 2026-11-20 12:00:10.000",
        "2026-11-20 12:00:10.000  ✔  Attempt 2 was delivered with status 200 after 0.250 s.",
        "                            Its request is kept; it can be sent again.",
    ]
    plain = [unstyle(line) for line in picture(story, unicode=False)]
    assert all(line.isascii() for line in plain)
    [line] = picture({"items": [], "kept": False}, unicode=True)
    assert line == "The journal has no steps of this callback yet."
