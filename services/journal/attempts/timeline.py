"""From the entries of a callback to the steps of its story: pure functions, no IO."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final

from shared.contracts.journal import AttemptOutcome, Entry, EntryKind
from shared.contracts.journal_reads import Step, StepKind

# The beginning of the reason of everything that is past its `expires_at`.
_EXPIRED: Final = "expired at "
# Entries of the same time, in the order of cause and effect. All others follow.
_RANKS: Final = {
    EntryKind.SCHEDULED: 0,
    EntryKind.RESCHEDULED: 1,
    EntryKind.DISPATCHED: 2,
    EntryKind.ATTEMPT: 3,
    EntryKind.DISPATCH_FAILED: 3,
    EntryKind.DEAD: 4,
}
_OTHERS: Final = 5


def timeline(entries: Iterable[Entry]) -> list[Step]:
    """Return the steps of one callback, the first one first."""
    return [step for entry in in_order(list(entries)) for step in _steps(entry)]


def in_order(entries: list[Entry]) -> list[Entry]:
    """Return entries by time, and a cause before its effect.

    The times are from different clocks, and a fast receiver responds before the scheduler knows
    that the broker has confirmed the dispatch.
    """
    first_attempts: dict[tuple[str | None, int | None], datetime] = {}
    for entry in entries:
        if entry.kind is EntryKind.ATTEMPT:
            key = entry.callback_id, entry.dispatch
            first_attempts[key] = min(entry.at, first_attempts.get(key, entry.at))
    earliest = min((entry.at for entry in entries), default=None)

    def place(entry: Entry) -> tuple[datetime, int, int]:
        at = entry.at
        if entry.kind is EntryKind.SCHEDULED and earliest is not None:
            at = earliest
        elif entry.kind is EntryKind.DISPATCHED:
            at = min(at, first_attempts.get((entry.callback_id, entry.dispatch), at))
        return at, _RANKS.get(entry.kind, _OTHERS), entry.seq

    return sorted(entries, key=place)


def _steps(entry: Entry) -> Iterator[Step]:
    """Yield the steps of an entry; an attempt has one more for what follows from it."""
    describe = _STEPS.get(entry.kind)
    if describe is None:  # endpoints have no timeline
        return
    yield describe(entry)
    if entry.outcome is AttemptOutcome.FAILED or entry.kind is EntryKind.MESSAGE_ATTEMPT_FAILED:
        yield _step(entry, StepKind.TIER, "Waits in a retry tier for the next attempt.", wait=True)
    elif entry.outcome is AttemptOutcome.DEAD:
        yield _dead(entry)


def _step(entry: Entry, kind: StepKind, text: str, *, wait: bool = False) -> Step:
    return Step(
        at=entry.at, kind=kind, text=text, until=entry.next_at if wait else None, entry=entry
    )


def _scheduled(entry: Entry) -> Step:
    text = "Scheduled; it recurs." if entry.detail.get("recurs") else "Scheduled."
    return _step(entry, StepKind.SCHEDULED, text, wait=True)


def _rescheduled(entry: Entry) -> Step:
    return _step(entry, StepKind.RESCHEDULED, "Rescheduled to another due time.", wait=True)


def _dispatched(entry: Entry) -> Step:
    text = f"Dispatch {entry.dispatch} was published"
    lag = entry.detail.get("lag")
    if isinstance(lag, int | float):
        text += f", {max(lag, 0):.3f} s after the due time"
    return _step(entry, StepKind.DISPATCHED, f"{text}.")


def _attempt(entry: Entry) -> Step:
    name = "Attempt" if entry.attempt is None else f"Attempt {entry.attempt}"
    result = "was delivered" if entry.outcome is AttemptOutcome.DELIVERED else "failed"
    status = f" with status {entry.status_code}" if entry.status_code is not None else ""
    duration = f" after {entry.duration:.3f} s" if entry.duration is not None else ""
    return _step(
        entry, StepKind.ATTEMPT, f"{name} {result}{status}{duration}{_because(entry.reason)}."
    )


def _dead(entry: Entry) -> Step:
    if (entry.reason or "").startswith(_EXPIRED):
        text = f"Expired, and became a dead letter{_because(entry.reason)}."
        return _step(entry, StepKind.EXPIRED, text)
    return _step(entry, StepKind.DEAD, f"Became a dead letter{_because(entry.reason)}.")


def _dispatch_failed(entry: Entry) -> Step:
    expired = (entry.reason or "").startswith(_EXPIRED)
    kind = StepKind.EXPIRED if expired else StepKind.DISPATCH_FAILED
    text = f"Dispatch {entry.dispatch} ended without a further attempt{_because(entry.reason)}."
    return _step(entry, kind, text)


def _retrying(entry: Entry) -> Step:
    text = f"Waits in the scheduler for a main retry{_because(entry.reason)}."
    return _step(entry, StepKind.RETRY, text, wait=True)


def _notified(entry: Entry) -> Step:
    return _step(entry, StepKind.NOTIFIED, f"Ended: notified{_after(entry.attempt)}.")


def _failed(entry: Entry) -> Step:
    text = f"Ended: failed for good{_after(entry.attempt)}{_because(entry.reason)}."
    return _step(entry, StepKind.FAILED, text)


def _cancelled(entry: Entry) -> Step:
    return _step(entry, StepKind.CANCELLED, "Ended: cancelled.")


def _replayed(entry: Entry) -> Step:
    target = f" to {entry.target}" if entry.target else ""
    return _step(entry, StepKind.REPLAYED, f"Sent again{target}{_by(entry)}.")


def _redriven(entry: Entry) -> Step:
    return _step(entry, StepKind.REDRIVEN, f"Moved back to its work queue{_by(entry)}.")


def _discarded(entry: Entry) -> Step:
    return _step(entry, StepKind.DISCARDED, f"The dead letter was deleted{_by(entry)}.")


def _sent(entry: Entry) -> Step:
    channel = entry.detail.get("channel", "message")
    return _step(entry, StepKind.SENT, f"Attempt {entry.attempt}: the {channel} was sent.")


def _message_failed(entry: Entry) -> Step:
    return _step(entry, StepKind.FAILED, f"Failed for good{_because(entry.reason)}.")


def _message_expired(entry: Entry) -> Step:
    return _step(entry, StepKind.EXPIRED, f"Expired before it was sent{_because(entry.reason)}.")


def _returned(entry: Entry) -> Step:
    return _step(
        entry, StepKind.RETURNED, f"Not sent; its mailing decides{_because(entry.reason)}."
    )


def _because(reason: str | None) -> str:
    return f": {reason.rstrip('.')}" if reason else ""


def _after(attempts: int | None) -> str:
    if not attempts:
        return ""
    return " after 1 attempt" if attempts == 1 else f" after {attempts} attempts"


def _by(entry: Entry) -> str:
    actor = entry.detail.get("actor")
    return f" by {actor}" if actor else ""


_STEPS: Final[Mapping[EntryKind, Callable[[Entry], Step]]] = {
    EntryKind.SCHEDULED: _scheduled,
    EntryKind.RESCHEDULED: _rescheduled,
    EntryKind.DISPATCHED: _dispatched,
    EntryKind.ATTEMPT: _attempt,
    EntryKind.DEAD: _dead,
    EntryKind.DISPATCH_FAILED: _dispatch_failed,
    EntryKind.RETRYING: _retrying,
    EntryKind.NOTIFIED: _notified,
    EntryKind.FAILED: _failed,
    EntryKind.CANCELLED: _cancelled,
    EntryKind.REPLAYED: _replayed,
    EntryKind.REDRIVEN: _redriven,
    EntryKind.DISCARDED: _discarded,
    EntryKind.MESSAGE_SENT: _sent,
    EntryKind.MESSAGE_ATTEMPT_FAILED: _attempt,
    EntryKind.MESSAGE_FAILED: _message_failed,
    EntryKind.MESSAGE_EXPIRED: _message_expired,
    EntryKind.MESSAGE_RETURNED: _returned,
}
