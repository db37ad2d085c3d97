"""E6: each outcome of a message is one log line, one count and one fact."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import BaseModel

from services.delivery.domain import ProviderError
from services.delivery.handlers import Expired, Handled, Reporter, Returned, Sent
from shared.amqp.codec import Properties
from shared.amqp.message import Dead, Deferred, Done, Message, Outcome, Retried
from shared.contracts.message_facts import (
    MessageAttemptFailed,
    MessageExpired,
    MessageFacts,
    MessageFailed,
    MessageReturned,
    MessageSent,
    ReasonCode,
)
from shared.errors import (
    ContractViolationError,
    DeferredError,
    ExpiredError,
    PermanentError,
    TransientError,
)
from shared.topology import TIERS
from tests.fakes.message_sender import CANARY, NOW, OF_MAILING, TRACE, Clock, email, message

DONE = Done(Sent(0.25, 250))
REPEATED = Done(Sent(0.5, None))
RETRIED = Retried(TIERS[1], NOW + 5, TransientError("the mail server responded with 450 to RCPT"))
EXPIRED = Dead("expired at …", ExpiredError("expired at …"))
FAILED = Dead("the mail server responded with 550 to RCPT", PermanentError("550"))
COMMON: dict[str, Any] = {
    "fact_id": "id-1//2",
    "at": datetime.fromtimestamp(NOW, UTC),
    "message_id": "id-1",
    "posting_id": "p-1",
    "mailing_id": "m-1",
    "recipient_id": "r-1",
    "channel": "email",
    "attempt": 2,
}
SENT = {"fact_id": "id-1/sent"}
REPORTS: dict[str, tuple[Outcome[Handled], BaseModel | None, str]] = {
    "sent": (DONE, MessageSent(**COMMON | SENT, duration=0.25), "message sent"),
    "repeated": (
        REPEATED,
        MessageSent(**COMMON | SENT, duration=0.5),
        "message repeated, already sent",
    ),
    "attempt_failed": (
        RETRIED,
        MessageAttemptFailed(
            **COMMON,
            error="the mail server responded with 450 to RCPT",
            next_at=datetime.fromtimestamp(NOW + 5, UTC),
        ),
        "message attempt failed",
    ),
    "expired": (
        EXPIRED,
        MessageExpired(**COMMON, reason="expired at …", expires_at=COMMON["at"]),
        "message expired",
    ),
    "failed": (
        FAILED,
        MessageFailed(**COMMON, reason=FAILED.reason, code=ReasonCode.REFUSED),
        "message failed",
    ),
    "expired in a mailing": (
        Done(Expired("expired at …")),
        MessageExpired(**COMMON, reason="expired at …", expires_at=COMMON["at"]),
        "message expired",
    ),
    "returned": (
        Done(Returned(ReasonCode.STOPPED)),
        MessageReturned(**COMMON, code=ReasonCode.STOPPED),
        "message returned",
    ),
    "deferred": (Deferred(TIERS[0], "lane full"), None, "message deferred"),
}


def counted() -> dict[str, float]:
    value = REGISTRY.get_sample_value
    found = {
        outcome: value("ringback_messages_total", {"channel": "email", "outcome": outcome}) or 0.0
        for outcome in ("sent", "attempt_failed", "expired", "failed", "returned")
    }
    return found | {
        "repeated": value("ringback_message_repeats_total", {"channel": "email"}) or 0.0
    }


@pytest.mark.parametrize("name", REPORTS)
def test_e6_each_outcome_is_one_log_line_one_count_and_one_fact(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    outcome, fact, text = REPORTS[name]
    reporter = Reporter("email", Clock())
    before = counted()
    with caplog.at_level(logging.DEBUG):
        command = email(**OF_MAILING, expires_at=COMMON["at"])
        assert reporter.report(message(), command, outcome) == fact
    assert {key: n - before[key] for key, n in counted().items() if n != before[key]} == (
        {} if fact is None else {name.removesuffix(" in a mailing"): 1}
    )
    [line] = caplog.records
    logged = vars(line)
    assert line.getMessage() == text
    assert (logged["message_id"], logged["posting_id"], logged["user_id"]) == ("id-1", "p-1", "u-1")
    assert (logged["mailing_id"], logged["recipient_id"]) == ("m-1", "r-1")
    assert (logged["channel"], logged["attempt"], logged["trace_id"]) == ("email", 2, TRACE)
    assert CANARY not in json.dumps(logged, default=repr)
    if fact is not None:
        assert MessageFacts.model_validate({"facts": [fact.model_dump()]}).facts == [fact]


def test_an_unreadable_message_is_reported_as_failed() -> None:
    unreadable: Message = Message("id-9", Properties(), CANARY.encode())
    outcome: Outcome[Sent] = Dead("phone: Field required", ContractViolationError("phone"))
    fact = Reporter("sms", Clock()).report(unreadable, None, outcome)
    assert isinstance(fact, MessageFailed)
    assert (fact.message_id, fact.posting_id, fact.channel) == ("id-9", None, "sms")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContractViolationError("phone"), ReasonCode.INVALID),
        (PermanentError("550"), ReasonCode.REFUSED),
        (ProviderError("down"), ReasonCode.PROVIDER_UNAVAILABLE),
        (DeferredError("breaker open", delay=1), ReasonCode.PROVIDER_UNAVAILABLE),
        (TransientError("greylisted"), ReasonCode.ATTEMPTS_EXHAUSTED),
        (RuntimeError("not ours"), ReasonCode.OTHER),
    ],
)
def test_the_reason_of_a_failure_has_a_code(error: Exception, code: ReasonCode) -> None:
    fact = Reporter("email", Clock()).report(message(), email(), Dead("failed", error))
    assert isinstance(fact, MessageFailed)
    assert fact.code is code


def test_n12_a_code_of_a_newer_version_is_other() -> None:
    fact = MessageFailed(**COMMON, reason="new", code=ReasonCode.REFUSED).model_dump(mode="json")
    [read] = MessageFacts.model_validate({"facts": [fact | {"code": "invented_later"}]}).facts
    assert isinstance(read, MessageFailed)
    assert read.code is ReasonCode.OTHER
