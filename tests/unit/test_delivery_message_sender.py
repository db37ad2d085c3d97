"""E6, M7: a message is sent once and before it expires; each outcome is reported."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import REGISTRY
from pydantic import BaseModel

from services.delivery import handlers
from services.delivery.claims import Claim
from services.delivery.domain import (
    BusyError,
    Limits,
    ProviderError,
    WithheldError,
    retry_policy,
)
from services.delivery.handlers import (
    ChannelSender,
    Check,
    Expired,
    Handled,
    MessageSender,
    Reporter,
    Returned,
    Sent,
)
from services.delivery.provider import Provider
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
from shared.contracts.messages import SendEmail
from shared.errors import (
    ContractViolationError,
    DeferredError,
    ExpiredError,
    InfrastructureError,
    PermanentError,
    TransientError,
)
from shared.resilience.lanes import INITIAL_OPEN_TIME, Breaker
from shared.resilience.retry import GiveUp, decide
from shared.topology import TIERS

CANARY = "c4n4ry"
OF_MAILING = {"mailing_id": "m-1", "recipient_id": "r-1"}
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


class Claims:
    """Claims of the only process; `expired` is whether another one could have taken them over."""

    expired = False

    def __init__(self) -> None:
        self.recorded: dict[UUID, float] = {}
        self.released: list[UUID] = []

    async def claim(self, id_: UUID) -> Claim:
        return Claim(id_, 1, self.recorded.get(id_))

    def check(self, _: Claim) -> None:
        if self.expired:
            raise InfrastructureError("the claim of the message has expired")

    async def record(self, claim: Claim, duration: float, recorded: Callable[[], None]) -> None:
        self.recorded[claim.id] = duration
        recorded()

    def release(self, claim: Claim) -> None:
        self.released.append(claim.id)


class Stops:
    """The stops of mailings; `stopped` are those that are stopped."""

    def __init__(self) -> None:
        self.stopped: set[str] = set()

    async def check(self, mailing_id: str) -> None:
        if mailing_id in self.stopped:
            raise WithheldError("stopped", ReasonCode.STOPPED)


class Setup:
    """A provider whose responses the test chooses, and a `MessageSender` that uses it."""

    def __init__(self, *, concurrency: int = 10, max_failures: int = 3) -> None:
        self.clock = Clock()
        self.changes: list[Breaker] = []
        self.accepted: list[str] = []
        self.respond: Callable[[], Awaitable[None]] = self.accept
        self.claims = Claims()
        self.stops = Stops()
        self.sender: MessageSender[SendEmail] = MessageSender(
            "email",
            ChannelSender("smtp://x:25", Limits(concurrency, None), self._send),
            Provider(
                "smtp://x:25",
                concurrency=concurrency,
                take_tokens=None,
                max_failures=max_failures,
                clock=self.clock.now,
                observe=lambda _, breaker, __: self.changes.append(breaker),
            ),
            self.claims,  # type: ignore[arg-type]
            self.stops,  # type: ignore[arg-type]
            self.clock,
        )

    async def _send(self, message_id: str, _: SendEmail, check: Check) -> int:
        await self.respond()
        await check()
        self.accepted.append(message_id)
        return 250

    async def accept(self) -> None:
        """Respond at once."""

    def fail(self, *errors: Exception) -> None:
        """Fail attempts with these errors in turn, and all later ones with the last."""
        left = list(errors)

        async def respond() -> None:
            raise left.pop(0) if len(left) > 1 else left[0]

        self.respond = respond

    async def handle(self, message_id: str = "id-1", **fields: Any) -> Sent:
        """Let the sender handle a message that is sent."""
        sent = await self.offer(message_id, **fields)
        assert isinstance(sent, Sent)
        return sent

    async def offer(self, message_id: str = "id-1", **fields: Any) -> Handled:
        """Let the sender handle a message."""
        return await self.sender.handle("bulk", message(message_id), email(**fields))


async def test_e6_a_message_that_was_sent_is_not_sent_again() -> None:
    setup = Setup()
    first = await setup.handle()
    setup.clock.at += 5
    repeat = await setup.handle(expires_at=expiry(1))  # also if it has expired
    assert (first.status, repeat.status) == (250, None)
    assert repeat.duration == first.duration
    assert setup.accepted == ["id-1"]


async def test_finding_c2_nothing_is_sent_under_an_expired_claim() -> None:
    setup = Setup()
    setup.claims.expired = True
    with pytest.raises(InfrastructureError, match="expired"):
        await setup.handle()
    assert setup.accepted == []
    assert len(setup.claims.released) == 1


async def test_e6_a_copy_is_deferred_while_the_first_one_is_in_flight() -> None:
    setup = Setup()
    started, finish = asyncio.Event(), asyncio.Event()

    async def respond() -> None:
        started.set()
        await finish.wait()
        raise TransientError("not now")

    setup.respond = respond
    first = asyncio.create_task(setup.handle())
    await started.wait()
    with pytest.raises(DeferredError):
        await asyncio.wait_for(setup.handle(), 5)
    finish.set()
    with pytest.raises(TransientError):
        await first
    setup.respond = setup.accept
    assert (await setup.handle()).status == 250
    assert setup.accepted == ["id-1"]


async def test_finding_d10_and_m14_a_busy_server_costs_no_attempt_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    setup = Setup()
    started, refused, finish = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        started.set()
        await finish.wait()

    async def refuse() -> None:
        setup.respond = setup.accept
        refused.set()
        raise BusyError("421")

    setup.respond = hold
    first = asyncio.create_task(setup.handle("first"))
    await started.wait()
    setup.respond = refuse
    second = asyncio.create_task(setup.handle("second", **OF_MAILING))
    await refused.wait()
    finish.set()
    await asyncio.gather(first, second)
    assert setup.accepted == ["first", "second"]
    assert setup.changes == []
    [line] = map(vars, caplog.records)
    logged = tuple(line[name] for name in ("message_id", "mailing_id", "recipient_id", "error"))
    assert logged == ("second", "m-1", "r-1", "421")


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (ProviderError("down"), True),
        (TransientError("greylisted"), False),
        (PermanentError("no such user"), False),
    ],
)
async def test_m7_only_provider_errors_open_the_breaker(error: Exception, *, opens: bool) -> None:
    setup = Setup(max_failures=3)
    setup.fail(error)
    for number in range(3):
        with pytest.raises(type(error)):
            await setup.handle(f"id-{number}")
    assert setup.changes == [Breaker.OPEN] * opens


async def test_e6_an_expired_message_is_not_sent() -> None:
    setup = Setup()
    for seconds in (0, -5):
        with pytest.raises(ExpiredError):
            await setup.handle(expires_at=expiry(seconds))

    async def respond() -> None:
        setup.clock.at += 2

    setup.respond = respond
    with pytest.raises(ExpiredError):  # while connecting
        await setup.handle(expires_at=expiry(2))
    assert setup.accepted == []
    await setup.handle(expires_at=expiry(10))
    assert setup.accepted == ["id-1"]


async def test_e6_a_message_that_expires_while_it_waits_for_the_lane_is_not_sent() -> None:
    setup = Setup(concurrency=1)
    started, finish = asyncio.Event(), asyncio.Event()

    async def respond() -> None:
        started.set()
        await finish.wait()

    setup.respond = respond
    first = asyncio.create_task(setup.handle("first"))
    await started.wait()
    second = asyncio.create_task(setup.handle("second", expires_at=expiry(1)))
    await asyncio.sleep(0)  # it queues in the lane
    setup.clock.at += 1
    finish.set()
    await first
    with pytest.raises(ExpiredError):
        await second
    assert setup.accepted == ["first"]


async def test_m2_a_message_of_a_stopped_mailing_is_returned_wherever_it_waits() -> None:
    setup = Setup(concurrency=1)
    setup.stops.stopped = {"m-1"}
    assert await setup.offer(**OF_MAILING) == Returned(ReasonCode.STOPPED)  # when it arrives
    assert isinstance(await setup.offer(mailing_id="m-2"), Sent)
    setup.stops.stopped = set()
    started, finish = asyncio.Event(), asyncio.Event()

    async def respond() -> None:
        started.set()
        await finish.wait()

    setup.respond = respond
    connecting = asyncio.create_task(setup.offer("connecting", **OF_MAILING))
    await started.wait()
    waiting = asyncio.create_task(setup.offer("waiting", **OF_MAILING))
    await asyncio.sleep(0)  # it waits for a place
    setup.stops.stopped = {"m-1"}
    finish.set()
    returned = Returned(ReasonCode.STOPPED)
    assert [await connecting, await waiting] == [returned, returned]
    assert setup.accepted == ["id-1"]
    assert len(setup.claims.released) == 3


async def test_m2_an_expired_message_of_a_mailing_is_not_sent_and_not_dead_lettered() -> None:
    setup = Setup()
    expired = await setup.offer(**OF_MAILING, expires_at=expiry(0))
    assert isinstance(expired, Expired)
    assert setup.accepted == []
    assert len(setup.claims.released) == 1
    policy = retry_policy(email(**OF_MAILING, expires_at=expiry(1)), give_up_after=86_400)
    failed = {"first_at": NOW, "now": NOW, "error": ProviderError("down"), "chance": 0.0}
    assert not isinstance(decide(policy, TIERS, attempt=1, **failed), GiveUp)  # type: ignore[arg-type]


async def test_m5_a_message_is_returned_when_its_window_closes() -> None:
    setup = Setup()
    closed = Returned(ReasonCode.WINDOW_CLOSED)
    assert await setup.offer(**OF_MAILING, send_until=expiry(0)) == closed
    both = await setup.offer(**OF_MAILING, send_until=expiry(-1), expires_at=expiry(0))
    assert isinstance(both, Expired)

    async def respond() -> None:
        setup.clock.at += 2

    setup.respond = respond
    assert await setup.offer(**OF_MAILING, send_until=expiry(2)) == closed  # while connecting
    assert isinstance(await setup.offer(**OF_MAILING, send_until=expiry(10)), Sent)
    assert setup.changes == []


async def test_m5_a_message_that_waits_is_returned_when_its_window_closes() -> None:
    setup = Setup(max_failures=1)
    setup.fail(ProviderError("down"))
    with pytest.raises(ProviderError):
        await setup.offer("probe")
    waiting = asyncio.create_task(setup.offer(**OF_MAILING, send_until=expiry(0.05)))
    await asyncio.sleep(0)
    setup.clock.at += 1
    assert await waiting == Returned(ReasonCode.WINDOW_CLOSED)


async def test_m7_messages_wait_for_an_open_breaker_before_they_go_to_a_tier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = Setup(max_failures=1)
    setup.fail(ProviderError("down"))
    with pytest.raises(ProviderError):
        await setup.handle("probe")
    monkeypatch.setattr(handlers, "WAIT_TIMEOUT", 0.1)
    with pytest.raises(DeferredError, match="breaker open") as caught:
        await setup.handle()
    assert caught.value.delay == INITIAL_OPEN_TIME
    waiting = asyncio.create_task(setup.handle(expires_at=expiry(0.05)))
    await asyncio.sleep(0)
    setup.clock.at += 1
    with pytest.raises(ExpiredError):
        await waiting


def test_e6_no_retry_is_planned_after_the_expiry() -> None:
    policy = retry_policy(email(expires_at=expiry(60)), give_up_after=86_400)
    plan = {"first_at": NOW, "now": NOW, "error": ProviderError("down"), "chance": 0.0}
    fitting = sum(tier.seconds < 60 for tier in TIERS)
    assert not isinstance(decide(policy, TIERS, attempt=fitting, **plan), GiveUp)  # type: ignore[arg-type]
    given_up = decide(policy, TIERS, attempt=fitting + 1, **plan)  # type: ignore[arg-type]
    assert isinstance(given_up, GiveUp)
    assert given_up.expired


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
