"""E6, M7: a message is sent once and before it expires; each outcome is reported."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import BaseModel

from services.delivery import handlers
from services.delivery.domain import ProviderError, retry_policy
from services.delivery.handlers import ChannelSender, MessageSender, Reporter, Sent
from shared.amqp.codec import Properties
from shared.amqp.message import Dead, Deferred, Done, Message, Outcome, Retried
from shared.contracts.message_facts import (
    MessageAttemptFailed,
    MessageExpired,
    MessageFacts,
    MessageFailed,
    MessageSent,
)
from shared.contracts.messages import SendEmail
from shared.errors import (
    ContractViolationError,
    DeferredError,
    ExpiredError,
    PermanentError,
    TransientError,
)
from shared.resilience.lanes import Breaker
from shared.resilience.retry import GiveUp, decide
from shared.topology import TIERS
from tests.fakes.lanes import LanesUnderTest

CANARY = "c4n4ry"
NOW = 1_800_000_000.0
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Clock:
    at = NOW

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


def email(**fields: Any) -> SendEmail:
    body = {"to": f"{CANARY}@x.org", "subject": CANARY, "text": CANARY, "posting_id": "p-1"}
    return SendEmail.model_validate(body | {"user_id": "u-1"} | fields)


def message(message_id: str = "id-1") -> Message:
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    return Message(message_id, Properties(headers=headers), b"", 2, first_at=NOW)


def expiry(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=seconds)


class Provider:
    """A provider whose responses the test chooses, and a `MessageSender` that uses it."""

    def __init__(self, *, concurrency: int = 10, **lanes: Any) -> None:
        self.clock = Clock()
        self.lanes_setup = LanesUnderTest(max_in_flight=concurrency, **lanes)
        self.accepted: list[str] = []
        self.respond: Callable[[], Awaitable[None]] = self.accept
        self.sender: MessageSender[SendEmail] = MessageSender(
            ChannelSender("smtp://x:25", concurrency, self._send),
            self.lanes_setup.lanes,
            self.clock,
            max_remembered=3,
        )

    async def _send(self, message_id: str, _: SendEmail, check: Callable[[], None]) -> None:
        await self.respond()
        check()
        self.accepted.append(message_id)

    async def accept(self) -> None:
        """Respond at once."""

    def fail(self, error: Exception) -> None:
        """Fail each attempt from now on."""

        async def respond() -> None:
            raise error

        self.respond = respond

    async def handle(self, message_id: str = "id-1", **fields: Any) -> Sent:
        """Let the sender handle a message."""
        return await self.sender.handle(message(message_id), email(**fields))


async def test_e6_a_message_that_was_sent_is_not_sent_again() -> None:
    provider = Provider()
    first = await provider.handle()
    provider.clock.at += 5
    repeat = await provider.handle(expires_at=expiry(1))  # also if it has expired
    assert (repeat.repeated, repeat.attempt_id, repeat.duration) == (
        True,
        first.attempt_id,
        first.duration,
    )
    assert provider.accepted == ["id-1"]


async def test_e6_the_number_of_remembered_ids_is_limited() -> None:
    provider = Provider()
    for message_id in ("a", "b", "c", "d", "b", "a"):
        await provider.handle(message_id)
    assert provider.accepted == ["a", "b", "c", "d", "a"]


async def test_e6_a_copy_is_deferred_while_the_first_one_is_in_flight() -> None:
    provider = Provider()
    started, finish = asyncio.Event(), asyncio.Event()

    async def respond() -> None:
        started.set()
        await finish.wait()
        raise TransientError("not now")

    provider.respond = respond
    first = asyncio.create_task(provider.handle())
    await started.wait()
    with pytest.raises(DeferredError):
        await asyncio.wait_for(provider.handle(), 5)
    finish.set()
    with pytest.raises(TransientError):
        await first
    provider.respond = provider.accept
    assert not (await provider.handle()).repeated
    assert provider.accepted == ["id-1"]


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (ProviderError("down"), True),
        (TransientError("greylisted"), False),
        (PermanentError("no such user"), False),
    ],
)
async def test_m7_only_provider_errors_open_the_breaker(error: Exception, *, opens: bool) -> None:
    provider = Provider(max_failures=3)
    provider.fail(error)
    for number in range(3):
        with pytest.raises(type(error)):
            await provider.handle(f"id-{number}")
    assert [change[1] for change in provider.lanes_setup.changes] == [Breaker.OPEN] * opens


async def test_e6_an_expired_message_is_not_sent() -> None:
    provider = Provider()
    for seconds in (0, -5):
        with pytest.raises(ExpiredError):
            await provider.handle(expires_at=expiry(seconds))

    async def respond() -> None:
        provider.clock.at += 2

    provider.respond = respond
    with pytest.raises(ExpiredError):  # while connecting
        await provider.handle(expires_at=expiry(2))
    assert provider.accepted == []
    await provider.handle(expires_at=expiry(10))
    assert provider.accepted == ["id-1"]


async def test_e6_a_message_that_expires_while_it_waits_for_the_lane_is_not_sent() -> None:
    provider = Provider(concurrency=1)
    started, finish = asyncio.Event(), asyncio.Event()

    async def respond() -> None:
        started.set()
        await finish.wait()

    provider.respond = respond
    first = asyncio.create_task(provider.handle("first"))
    await started.wait()
    second = asyncio.create_task(provider.handle("second", expires_at=expiry(1)))
    await asyncio.sleep(0)  # it queues in the lane
    provider.clock.at += 1
    finish.set()
    await first
    with pytest.raises(ExpiredError):
        await second
    assert provider.accepted == ["first"]


async def test_m7_messages_wait_for_an_open_breaker_before_they_go_to_a_tier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = Provider(max_failures=1)
    provider.fail(ProviderError("down"))
    with pytest.raises(ProviderError):
        await provider.handle("probe")
    attempts = 0

    async def record_sleep(seconds: float) -> None:
        nonlocal attempts
        attempts += 1
        provider.clock.at += seconds

    monkeypatch.setattr(asyncio, "sleep", record_sleep)
    with pytest.raises(DeferredError, match="breaker open"):
        await provider.handle()
    assert attempts == handlers.LANE_TIMEOUT
    with pytest.raises(ExpiredError):
        await provider.handle(expires_at=datetime.fromtimestamp(provider.clock.at + 3.5, UTC))
    assert attempts == handlers.LANE_TIMEOUT + 4


def test_e6_no_retry_is_planned_after_the_expiry() -> None:
    policy = retry_policy(email(expires_at=expiry(60)), give_up_after=86_400)
    plan = {"first_at": NOW, "now": NOW, "error": ProviderError("down"), "chance": 0.0}
    fitting = sum(tier.seconds < 60 for tier in TIERS)
    assert not isinstance(decide(policy, TIERS, attempt=fitting, **plan), GiveUp)  # type: ignore[arg-type]
    given_up = decide(policy, TIERS, attempt=fitting + 1, **plan)  # type: ignore[arg-type]
    assert isinstance(given_up, GiveUp)
    assert given_up.expired


DONE = Done(Sent("id-1/1800000000.000/2", 0.25))
REPEATED = Done(Sent("id-1/1700000000.000/1", 0.5, repeated=True))
RETRIED = Retried(TIERS[1], NOW + 5, TransientError("the mail server responded with 450 to RCPT"))
EXPIRED = Dead("expired at …", ExpiredError("expired at …"))
FAILED = Dead("the mail server responded with 550 to RCPT", PermanentError("550"))
COMMON: dict[str, Any] = {
    "fact_id": f"id-1/{NOW:.3f}/2",
    "at": datetime.fromtimestamp(NOW, UTC),
    "message_id": "id-1",
    "posting_id": "p-1",
    "channel": "email",
    "attempt": 2,
}
REPORTS: dict[str, tuple[Outcome[Sent], BaseModel | None, str]] = {
    "sent": (DONE, MessageSent(**COMMON, duration=0.25), "message sent"),
    "repeated": (
        REPEATED,
        MessageSent(**COMMON | {"fact_id": "id-1/1700000000.000/1"}, duration=0.5),
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
    "expired": (EXPIRED, MessageExpired(**COMMON, reason="expired at …"), "message expired"),
    "failed": (FAILED, MessageFailed(**COMMON, reason=FAILED.reason), "message failed"),
    "deferred": (Deferred(TIERS[0], "lane full"), None, "message deferred"),
}


def counted() -> dict[str, float]:
    value = REGISTRY.get_sample_value
    found = {
        outcome: value("ringback_messages_total", {"channel": "email", "outcome": outcome}) or 0.0
        for outcome in ("sent", "attempt_failed", "expired", "failed")
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
        assert reporter.report(message(), email(), outcome) == fact
    assert {key: n - before[key] for key, n in counted().items() if n != before[key]} == (
        {} if fact is None else {name: 1}
    )
    [line] = caplog.records
    logged = vars(line)
    assert line.getMessage() == text
    assert (logged["message_id"], logged["posting_id"], logged["user_id"]) == ("id-1", "p-1", "u-1")
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
