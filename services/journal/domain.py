"""From facts to rows of the journal: pure functions, no IO."""

from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from json import dumps
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic import BaseModel

from services.journal.durations import BUCKETS, bucket
from shared.contracts import headers
from shared.contracts.endpoint_facts import EndpointDisabled
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDead,
    CallbackDelivered,
    CallbackDispatchFailed,
)
from shared.contracts.journal import AttemptOutcome, EntryKind
from shared.contracts.journal_facts import CallbackReplayed, LetterDiscarded, LetterRedriven
from shared.contracts.message_facts import (
    MessageAttemptFailed,
    MessageExpired,
    MessageFailed,
    MessageReturned,
    MessageSent,
)
from shared.contracts.schedule_facts import (
    ScheduleCreated,
    ScheduleDispatched,
    ScheduleFact,
    ScheduleRescheduled,
)

# Characters of a text in an entry. Ringback's own reasons have at most as many.
MAX_TEXT: Final = 1000
# How far ahead a fact's time may be, because of other machines' clocks.
MAX_AHEAD: Final = timedelta(minutes=5)

_UUID_LENGTH: Final = 36


class EntryRow(NamedTuple):
    """A row of `journal.entries`, in the order of its columns there."""

    at: datetime
    kind: str
    next_at: datetime | None = None
    duration: float | None = None
    attempt: int | None = None
    dispatch: int | None = None
    status_code: int | None = None
    outcome: str | None = None
    schedule_id: UUID | None = None
    callback_id: str | None = None
    message_id: str | None = None
    client_id: str | None = None
    target: str | None = None
    trace_id: str | None = None
    group_key: str | None = None
    event_key: str | None = None
    reason: str | None = None
    response: bytes | None = None
    detail: str | None = None


class RequestRow(NamedTuple):
    """A kept request: a row of `journal.requests`."""

    callback_id: str
    client_id: str
    reference: str
    at: datetime
    sealed: bytes


MinuteKey = tuple[str, str, datetime]  # target, client, minute


@dataclass(slots=True)
class Minute:
    """The attempts of one target and client in one minute."""

    delivered: int = 0
    failed: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def add(self, other: "Minute") -> None:
        """Add the attempts of another target."""
        self.delivered += other.delivered
        self.failed += other.failed
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]


@dataclass(slots=True)
class Rows:
    """The rows of a batch of facts. `expired` facts are older than the retention."""

    entries: list[EntryRow] = field(default_factory=list)
    requests: list[RequestRow] = field(default_factory=list)
    minutes: dict[MinuteKey, Minute] = field(default_factory=dict)
    expired: int = 0


def rows(facts: Iterable[BaseModel], *, now: datetime, retention: timedelta) -> Rows:
    """Return what the journal stores of these facts.

    A fact from the future counts as from now, so that it has a partition.
    """
    found = Rows()
    oldest, latest = now - retention, now + MAX_AHEAD
    for fact in facts:
        convert = _CONVERTERS.get(type(fact))
        if convert is None:
            continue
        row = convert(fact)
        if row.at < oldest:
            found.expired += 1
            continue
        if row.at > latest:
            row = row._replace(at=now)
        found.entries.append(row)
        if row.outcome is not None and row.duration is not None and row.target is not None:
            _count(found.minutes, row.target, row.client_id or "", row)
        sealed = getattr(fact, "request", None)
        if sealed is not None and row.callback_id is not None:
            request = _bytes(sealed)
            if request is not None:
                found.requests.append(
                    RequestRow(
                        row.callback_id,
                        row.client_id or "",
                        _text(getattr(fact, "reference", None)) or "",
                        row.at,
                        request,
                    )
                )
    return found


def _count(minutes: dict[MinuteKey, Minute], target: str, client_id: str, row: EntryRow) -> None:
    key = target, client_id, row.at.replace(second=0, microsecond=0)
    minute = minutes.get(key)
    if minute is None:
        minute = minutes[key] = Minute()
    if row.outcome == AttemptOutcome.DELIVERED.value:
        minute.delivered += 1
    else:
        minute.failed += 1
    minute.buckets[bucket(row.duration or 0.0)] += 1


def _attempt(  # noqa: PLR0913 - the fields that differ between the facts
    fact: Any,
    outcome: AttemptOutcome,
    *,
    kind: EntryKind = EntryKind.ATTEMPT,
    reason: str | None = None,
    next_at: datetime | None = None,
    detail: Mapping[str, Any] | None = None,
) -> EntryRow:
    """Return the entry of an attempt. Without a duration, there was none in this fact."""
    attempted = kind is EntryKind.ATTEMPT
    known = {} if detail is None else dict(detail)
    if fact.reference is not None:
        known["reference"] = fact.reference
    if fact.replay is not None:
        known["replay"] = fact.replay
    owner = fact.owner
    scheduled = owner == headers.SCHEDULER
    if owner is not None and not scheduled:
        known["owner"] = owner
    return EntryRow(
        fact.at,
        kind.value,
        next_at,
        fact.duration,
        fact.attempt,
        fact.dispatch,
        fact.status,
        outcome.value if attempted else None,
        _schedule_id(fact.callback_id) if scheduled else None,
        fact.callback_id,
        None,
        fact.client_id or "",
        fact.target,
        fact.trace_id,
        None,
        None,
        _text(reason),
        _bytes(fact.response),
        _json(known),
    )


def _delivered(fact: CallbackDelivered) -> EntryRow:
    return _attempt(fact, AttemptOutcome.DELIVERED)


def _attempt_failed(fact: CallbackAttemptFailed) -> EntryRow:
    return _attempt(fact, AttemptOutcome.FAILED, reason=fact.error, next_at=fact.next_at)


def _dead(fact: CallbackDead) -> EntryRow:
    kind = EntryKind.DEAD if fact.duration is None else EntryKind.ATTEMPT
    return _attempt(fact, AttemptOutcome.DEAD, kind=kind, reason=fact.reason)


def _dispatch_failed(fact: CallbackDispatchFailed) -> EntryRow:
    return _attempt(
        fact,
        AttemptOutcome.DISPATCH_FAILED,
        kind=EntryKind.DISPATCH_FAILED if fact.duration is None else EntryKind.ATTEMPT,
        reason=fact.reason,
        detail={"final": fact.final},
    )


def _created(fact: ScheduleCreated) -> EntryRow:
    detail = {"recurs": True} if fact.recurs else {}
    row = _of_schedule(fact, EntryKind.SCHEDULED, next_at=fact.run_at, detail=detail)
    return row._replace(target=fact.target)


def _rescheduled(fact: ScheduleRescheduled) -> EntryRow:
    return _of_schedule(fact, EntryKind.RESCHEDULED, next_at=fact.run_at)


def _dispatched(fact: ScheduleDispatched) -> EntryRow:
    row = _of_schedule(fact, EntryKind.DISPATCHED, detail={"lag": round(fact.lag, 6)})
    return row._replace(callback_id=fact.callback_id, dispatch=fact.dispatch)


_SCHEDULE_KINDS: Final = {
    "schedule.notified": EntryKind.NOTIFIED,
    "schedule.failed": EntryKind.FAILED,
    "schedule.cancelled": EntryKind.CANCELLED,
    "schedule.retrying": EntryKind.RETRYING,
}


def _schedule(fact: ScheduleFact) -> EntryRow:
    detail = {} if fact.occurrence is None else {"occurrence": fact.occurrence}
    row = _of_schedule(fact, _SCHEDULE_KINDS[fact.type], next_at=fact.next_at, detail=detail)
    return row._replace(attempt=fact.attempts, reason=_text(fact.error))


def _of_schedule(
    fact: Any,
    kind: EntryKind,
    *,
    next_at: datetime | None = None,
    detail: Mapping[str, Any] | None = None,
) -> EntryRow:
    return EntryRow(
        fact.at,
        kind.value,
        next_at,
        schedule_id=fact.schedule_id,
        client_id=fact.client_id or "",
        trace_id=getattr(fact, "trace_id", None),
        group_key=fact.group_key,
        event_key=fact.event_key,
        detail=_json(detail or {}),
    )


_MESSAGE_KINDS: Final[Mapping[type, EntryKind]] = {
    MessageSent: EntryKind.MESSAGE_SENT,
    MessageAttemptFailed: EntryKind.MESSAGE_ATTEMPT_FAILED,
    MessageFailed: EntryKind.MESSAGE_FAILED,
    MessageExpired: EntryKind.MESSAGE_EXPIRED,
    MessageReturned: EntryKind.MESSAGE_RETURNED,
}


def _message(fact: Any) -> EntryRow:
    """Return the entry of an e-mail or SMS. It has no client: only operators see it."""
    code = getattr(fact, "code", None)
    detail = {
        "channel": fact.channel,
        "posting_id": fact.posting_id,
        "mailing_id": fact.mailing_id,
        "recipient_id": fact.recipient_id,
        "code": None if code is None else code.value,
    }
    return EntryRow(
        fact.at,
        _MESSAGE_KINDS[type(fact)].value,
        getattr(fact, "next_at", None),
        getattr(fact, "duration", None),
        fact.attempt,
        message_id=_text(fact.message_id),
        reason=_text(getattr(fact, "reason", None) or getattr(fact, "error", None)),
        detail=_json({name: value for name, value in detail.items() if value is not None}),
    )


def _endpoint_disabled(fact: EndpointDisabled) -> EntryRow:
    detail = {
        "endpoint_id": str(fact.endpoint_id),
        "failing_since": fact.failing_since.isoformat(),
    }
    return EntryRow(
        fact.at,
        EntryKind.ENDPOINT_DISABLED.value,
        client_id=fact.client_id or "",
        detail=_json(detail),
    )


def _replayed(fact: CallbackReplayed) -> EntryRow:
    return EntryRow(
        fact.at,
        EntryKind.REPLAYED.value,
        callback_id=fact.callback_id,
        client_id=fact.client_id or "",
        target=fact.target,
        trace_id=fact.trace_id,
        detail=_json({"actor": fact.actor, "replay": fact.replay}),
    )


def _moved(fact: LetterRedriven | LetterDiscarded) -> EntryRow:
    """Return the entry of a dead letter that left its queue. Only operators move them."""
    redriven = isinstance(fact, LetterRedriven)
    return EntryRow(
        fact.at,
        (EntryKind.REDRIVEN if redriven else EntryKind.DISCARDED).value,
        callback_id=_text(fact.logical_id),
        detail=_json({"queue": fact.queue, "actor": fact.actor, "job": fact.job}),
    )


_CONVERTERS: Final[Mapping[type, Callable[[Any], EntryRow]]] = {
    CallbackDelivered: _delivered,
    CallbackAttemptFailed: _attempt_failed,
    CallbackDead: _dead,
    CallbackDispatchFailed: _dispatch_failed,
    ScheduleCreated: _created,
    ScheduleRescheduled: _rescheduled,
    ScheduleDispatched: _dispatched,
    ScheduleFact: _schedule,
    EndpointDisabled: _endpoint_disabled,
    CallbackReplayed: _replayed,
    LetterRedriven: _moved,
    LetterDiscarded: _moved,
    **dict.fromkeys(_MESSAGE_KINDS, _message),
}


def _schedule_id(callback_id: str) -> UUID | None:
    """Return the scheduled callback behind a `webhook-id`, which may end in its occurrence."""
    try:
        return UUID(callback_id[:_UUID_LENGTH])
    except ValueError:  # a sender has forged the owner
        return None


def _text(value: str | None) -> str | None:
    """Return a text that PostgreSQL can store, which cannot store NUL."""
    if value is None:
        return None
    return value[:MAX_TEXT].replace("\0", "\N{REPLACEMENT CHARACTER}")


def _json(detail: Mapping[str, Any]) -> str | None:
    return dumps(detail).replace("\\u0000", "\\ufffd") if detail else None


def _bytes(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return b64decode(text, validate=True)
    except ValueError:  # not from Ringback
        return None
