"""E6: once, not too late, and what is whose fault. What became of it: one line, count and fact."""

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
from services.delivery.handlers import MessageSender, Reporter, Sent
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
from tests.fakes.lanes import World

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


def message(ident: str = "id-1") -> Message:
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    return Message(ident, Properties(headers=headers), b"", 2, first_at=NOW)


def ends(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=seconds)


class Place:
    """A courier, what it has handed over, and how its hand-overs end."""

    def __init__(self, **world: Any) -> None:
        self.clock = Clock()
        self.world = World(**world)
        self.handed: list[str] = []
        self.end: Callable[[], Awaitable[None]] = self.well
        self.courier: MessageSender[SendEmail] = MessageSender(
            self.hand_over, self.world.lanes, "smtp://x:25", self.clock, most_recent=3
        )

    async def hand_over(self, ident: str, _: SendEmail, check: Callable[[], None]) -> None:
        await self.end()
        check()
        self.handed.append(ident)

    async def well(self) -> None:
        """Nothing happens."""

    def failing(self, error: Exception) -> None:
        async def fail() -> None:
            raise error

        self.end = fail

    async def again(self, ident: str = "id-1", **fields: Any) -> Sent:
        return await self.courier.handle(message(ident), email(**fields))


async def test_e6_what_was_handed_over_is_not_handed_over_again() -> None:
    place = Place()
    first = await place.again()
    place.clock.at += 5
    repeat = await place.again(expires_at=ends(1))  # also when its time is over
    assert (repeat.again, repeat.attempt_id, repeat.duration) == (
        True,
        first.attempt_id,
        first.duration,
    )
    assert place.handed == ["id-1"]


async def test_e6_the_memory_of_ids_is_bounded() -> None:
    place = Place()
    for ident in ("a", "b", "c", "d", "b", "a"):
        await place.again(ident)
    assert place.handed == ["a", "b", "c", "d", "a"]


async def test_e6_a_second_copy_waits_until_the_first_has_arrived_or_failed() -> None:
    place = Place()
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await go.wait()
        raise TransientError("not now")

    place.end = slow
    first = asyncio.create_task(place.again())
    await begun.wait()
    with pytest.raises(DeferredError):
        await asyncio.wait_for(place.again(), 5)
    go.set()
    with pytest.raises(TransientError):
        await first
    place.end = place.well
    assert not (await place.again()).again
    assert place.handed == ["id-1"]


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (ProviderError("down"), True),
        (TransientError("greylisted"), False),
        (PermanentError("no such user"), False),
    ],
)
async def test_m7_only_the_servers_own_trouble_opens_the_breaker(
    error: Exception, *, opens: bool
) -> None:
    place = Place(failures=3)
    place.failing(error)
    for number in range(3):
        with pytest.raises(type(error)):
            await place.again(f"id-{number}")
    assert [change[1] for change in place.world.told] == [Breaker.OPEN] * opens


async def test_e6_nothing_goes_out_at_or_after_its_end() -> None:
    place = Place()
    for seconds in (0, -5):
        with pytest.raises(ExpiredError):
            await place.again(expires_at=ends(seconds))

    async def takes_two() -> None:
        place.clock.at += 2

    place.end = takes_two
    with pytest.raises(ExpiredError):  # while connecting
        await place.again(expires_at=ends(2))
    assert place.handed == []
    await place.again(expires_at=ends(10))
    assert place.handed == ["id-1"]


async def test_e6_what_expires_while_it_waits_for_a_place_does_not_go_out() -> None:
    place = Place(widest=1)
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await go.wait()

    place.end = slow
    first = asyncio.create_task(place.again("first"))
    await begun.wait()
    second = asyncio.create_task(place.again("second", expires_at=ends(1)))
    await asyncio.sleep(0)  # it lines up
    place.clock.at += 1
    go.set()
    await first
    with pytest.raises(ExpiredError):
        await second
    assert place.handed == ["first"]


async def test_m7_behind_an_open_breaker_messages_wait_here_before_they_go_to_a_tier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place(failures=1)
    place.failing(ProviderError("down"))
    with pytest.raises(ProviderError):
        await place.again("probe")
    looks = 0

    async def slept(seconds: float) -> None:
        nonlocal looks
        looks += 1
        place.clock.at += seconds

    monkeypatch.setattr(asyncio, "sleep", slept)
    with pytest.raises(DeferredError, match="breaker open"):
        await place.again()
    assert looks == handlers.LONGEST_WAIT
    with pytest.raises(ExpiredError):
        await place.again(expires_at=datetime.fromtimestamp(place.clock.at + 3.5, UTC))
    assert looks == handlers.LONGEST_WAIT + 4


def test_e6_no_retry_is_planned_for_after_its_end() -> None:
    policy = retry_policy(email(expires_at=ends(60)), give_up_after=86_400)
    plan = {"first_at": NOW, "now": NOW, "error": ProviderError("down"), "chance": 0.0}
    assert not isinstance(decide(policy, attempt=3, **plan), GiveUp)  # type: ignore[arg-type]
    given_up = decide(policy, attempt=4, **plan)  # type: ignore[arg-type]
    assert isinstance(given_up, GiveUp)
    assert given_up.expired


DONE = Done(Sent("id-1/1800000000.000/2", 0.25))
AGAIN = Done(Sent("id-1/1700000000.000/1", 0.5, again=True))
RETRIED = Retried(TIERS[1], NOW + 5, TransientError("the mail server answered 450 to RCPT"))
EXPIRED = Dead("expired at …", ExpiredError("expired at …"))
FAILED = Dead("the mail server answered 550 to RCPT", PermanentError("550"))
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
    "again": (
        AGAIN,
        MessageSent(**COMMON | {"fact_id": "id-1/1700000000.000/1"}, duration=0.5),
        "message came again, was sent before",
    ),
    "attempt_failed": (
        RETRIED,
        MessageAttemptFailed(
            **COMMON,
            error="the mail server answered 450 to RCPT",
            next_at=datetime.fromtimestamp(NOW + 5, UTC),
        ),
        "message attempt failed",
    ),
    "expired": (EXPIRED, MessageExpired(**COMMON, reason="expired at …"), "message expired"),
    "failed": (FAILED, MessageFailed(**COMMON, reason=FAILED.reason), "message failed"),
    "postponed": (Deferred(TIERS[0], "lane full"), None, "message postponed"),
}


def counted() -> dict[str, float]:
    value = REGISTRY.get_sample_value
    found = {
        outcome: value("ringback_messages_total", {"channel": "email", "outcome": outcome}) or 0.0
        for outcome in ("sent", "attempt_failed", "expired", "failed")
    }
    return found | {"again": value("ringback_message_repeats_total", {"channel": "email"}) or 0.0}


@pytest.mark.parametrize("name", REPORTS)
def test_e6_what_became_of_a_message_is_one_line_one_count_one_fact(
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
    told = vars(line)
    assert line.getMessage() == text
    assert (told["message_id"], told["posting_id"], told["user_id"]) == ("id-1", "p-1", "u-1")
    assert (told["channel"], told["attempt"], told["trace_id"]) == ("email", 2, TRACE)
    assert CANARY not in json.dumps(told, default=repr)
    if fact is not None:
        assert MessageFacts.model_validate({"facts": [fact.model_dump()]}).facts == [fact]


def test_what_could_not_be_read_failed() -> None:
    unread: Message = Message("id-9", Properties(), CANARY.encode())
    outcome: Outcome[Sent] = Dead("phone: Field required", ContractViolationError("phone"))
    fact = Reporter("sms", Clock()).report(unread, None, outcome)
    assert isinstance(fact, MessageFailed)
    assert (fact.message_id, fact.posting_id, fact.channel) == ("id-9", None, "sms")
