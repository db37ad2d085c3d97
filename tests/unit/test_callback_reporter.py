"""Each outcome is one log line, one count and one fact, without secrets. H4, H5, row 31."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import BaseModel

from services.callback.handlers import Attempted, Delivered, Reporter
from services.callback.kept import Keeper
from shared.amqp.codec import Properties
from shared.amqp.message import Dead, Deferred, DispatchFailed, Done, Message, Outcome, Retried
from shared.contracts.callback import SendCallback
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDead,
    CallbackDelivered,
    CallbackDispatchFailed,
    Facts,
)
from shared.errors import ContractViolationError, ExpiredError, PermanentError, TransientError
from shared.http.client import HttpResponse
from shared.topology import TIERS

CANARY = "c4n4ry"
NOW = 1_800_000_000.5
TRACE = "0af7651916cd43dd8448eb211c80319c"
DONE = Done(Delivered(status=204, duration=0.1234567))
RETRIED = Retried(TIERS[1], NOW + 5, TransientError("the receiver responded with 500"))
DEFERRED = Deferred(TIERS[0], "lane full")
DEAD = Dead("the receiver responded with 410: gone for good", PermanentError("410"))
DISPATCH_FAILED = DispatchFailed(
    "gave up after 2 attempts", TransientError("the receiver responded with 500")
)


class StoppedClock:
    """A clock that always shows the same time."""

    def now(self) -> float:
        return NOW

    def monotonic(self) -> float:
        return NOW


def command(**fields: Any) -> SendCallback:
    return SendCallback.model_validate(
        {
            "target_url": f"https://Example.com/hooks/{CANARY}?token={CANARY}",
            "hmac_secret": [CANARY, f"{CANARY}-old"],
            "payload": {"text": CANARY},
            "headers": {"Authorization": CANARY},
            "client_id": "shop",
            **fields,
        }
    )


def message(owner: str | None = None) -> Message:
    properties = Properties(
        headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-ringback-dispatch": 3}
    )
    return Message("id-1", properties, CANARY.encode(), attempt=2, owner=owner)


@pytest.fixture
def report(caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[BaseModel | None, Any]]:
    """Return a function that reports an outcome and returns the fact and the log line."""

    def reported(
        outcome: Outcome[Delivered],
        handled: Message | None = None,
        model: SendCallback | None = None,
        *,
        readable: bool = True,
    ) -> tuple[BaseModel | None, logging.LogRecord]:
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            fact = Reporter(StoppedClock(), Keeper(None, "all")).report(
                handled or message(), (model or command()) if readable else None, outcome
            )
        [line] = caplog.records
        return fact, line

    return reported


def counted() -> tuple[float, float]:
    """Return the numbers of successes and of errors so far."""
    success, error = (
        REGISTRY.get_sample_value("callback_total", {"status": status})
        for status in ("success", "error")
    )
    assert success is not None
    assert error is not None
    return success, error


Report = Callable[..., tuple[BaseModel | None, Any]]


# H4
@pytest.mark.parametrize(
    ("outcome", "success", "error"),
    [(DONE, 1, 0), (RETRIED, 0, 1), (DEFERRED, 0, 0), (DEAD, 0, 1), (DISPATCH_FAILED, 0, 1)],
    ids=["done", "retried", "deferred", "dead", "dispatch failed"],
)
def test_h4_each_attempt_is_counted_once(
    report: Report, outcome: Outcome[Delivered], success: int, error: int
) -> None:
    before = counted()
    report(outcome, message(owner="scheduler" if outcome is DISPATCH_FAILED else None))
    after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == (success, error)


def test_a_delivery_is_published_as_a_fact(report: Report) -> None:
    fact, line = report(DONE)
    assert fact == CallbackDelivered(
        fact_id="id-1//2",
        at=datetime.fromtimestamp(NOW, UTC),
        callback_id="id-1",
        client_id="shop",
        target="https://example.com:443",
        attempt=2,
        trace_id=TRACE,
        status=204,
        duration=0.1234567,
    )
    assert (line.levelname, line.getMessage()) == ("INFO", "callback delivered")
    assert (line.status, line.duration) == (204, 0.123457)


def test_a_failed_attempt_is_published_with_the_time_of_the_next_one(report: Report) -> None:
    fact, line = report(RETRIED)
    assert fact == CallbackAttemptFailed(
        fact_id="id-1//2",
        at=datetime.fromtimestamp(NOW, UTC),
        callback_id="id-1",
        client_id="shop",
        target="https://example.com:443",
        attempt=2,
        trace_id=TRACE,
        error="the receiver responded with 500",
        next_at=datetime.fromtimestamp(NOW + 5, UTC),
    )
    assert (line.levelname, line.getMessage()) == ("WARNING", "callback attempt failed")
    assert (line.error, line.tier) == ("the receiver responded with 500", "5s")


def test_a_deferred_callback_is_logged_but_not_published(report: Report) -> None:
    fact, line = report(DEFERRED)
    assert fact is None
    assert (line.levelname, line.reason, line.tier) == ("DEBUG", "lane full", "1s")


def test_a_dead_lettered_callback_is_published_with_its_reason(report: Report) -> None:
    fact, line = report(DEAD)
    assert fact == CallbackDead(
        fact_id="id-1//2",
        at=datetime.fromtimestamp(NOW, UTC),
        callback_id="id-1",
        client_id="shop",
        target="https://example.com:443",
        attempt=2,
        trace_id=TRACE,
        reason="the receiver responded with 410: gone for good",
    )
    assert (line.levelname, line.getMessage()) == ("ERROR", "callback dead-lettered")
    assert line.reason == "the receiver responded with 410: gone for good"


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (TransientError("the receiver responded with 500"), False),
        (ExpiredError("expired"), False),
        (PermanentError("the receiver responded with 410"), True),
        (ContractViolationError("payload"), True),
    ],
)
def test_a_failed_dispatch_reports_to_its_owner_whether_a_later_attempt_can_succeed(
    report: Report, error: Exception, *, final: bool
) -> None:
    owned = message(owner="scheduler")
    fact, line = report(DispatchFailed(str(error), error), owned)
    assert isinstance(fact, CallbackDispatchFailed)
    assert (fact.final, fact.owner, fact.dispatch, fact.attempt) == (final, "scheduler", 3, 2)
    assert (line.levelname, line.owner, line.reason) == ("WARNING", "scheduler", str(error))
    done, _ = report(DONE, owned)
    assert isinstance(done, CallbackDelivered)
    assert (done.owner, done.dispatch) == ("scheduler", 3)


def test_an_unreadable_message_is_dead_lettered_and_not_counted_as_an_attempt(
    report: Report,
) -> None:
    before = counted()
    unreadable: Message = Message("id-9", Properties(), CANARY.encode())
    reason = "payload: Field required"
    fact, line = report(Dead(reason, ContractViolationError(reason)), unreadable, readable=False)
    assert isinstance(fact, CallbackDead)
    assert (fact.callback_id, fact.target, fact.client_id) == ("id-9", None, None)
    assert counted() == before
    assert line.reason == reason


def test_a_forbidden_target_is_not_published(report: Report) -> None:
    fact, _ = report(DEAD, model=command(target_url=f"ftp://user:{CANARY}@example.com/"))
    assert isinstance(fact, CallbackDead)
    assert fact.target is None


# H5
@pytest.mark.parametrize("outcome", [DONE, RETRIED, DEFERRED, DEAD])
def test_h5_every_log_line_names_its_callback(report: Report, outcome: Outcome[Delivered]) -> None:
    _, line = report(outcome)
    assert (line.callback_id, line.client_id, line.attempt) == ("id-1", "shop", 2)
    assert (line.target_url, line.trace_id) == ("https://example.com:443", TRACE)


# Row 31
@pytest.mark.parametrize("outcome", [DONE, RETRIED, DEFERRED, DEAD])
def test_row_31_facts_and_log_lines_contain_no_secret_payload_or_path(
    report: Report, outcome: Outcome[Delivered]
) -> None:
    fact, line = report(outcome)
    assert CANARY not in json.dumps(vars(line), default=repr)
    assert CANARY not in repr(fact)
    if fact is not None:
        assert CANARY not in Facts.model_validate({"facts": [fact.model_dump()]}).model_dump_json()


@pytest.mark.parametrize("outcome", [RETRIED, DEAD, DISPATCH_FAILED])
def test_n6_a_failed_attempt_is_reported_with_its_duration_status_and_trace(
    report: Callable[..., tuple[BaseModel | None, Any]], outcome: Outcome[Delivered]
) -> None:
    attempted, waited = message("scheduler"), message("scheduler")
    attempted.record = Attempted(0.25, HttpResponse(503, None, b""))

    fact, _ = report(outcome, attempted)
    without, _ = report(outcome, waited)

    assert isinstance(fact, CallbackAttemptFailed | CallbackDead | CallbackDispatchFailed)
    assert (fact.duration, fact.trace_id) == (0.25, TRACE)
    assert isinstance(without, type(fact))
    assert without.duration is None
    if isinstance(fact, CallbackDead):
        assert fact.status == 503
