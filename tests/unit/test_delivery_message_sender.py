"""E6, M2, M5, M7: a message is sent once, before it expires and while its mailing allows it."""

import asyncio
import logging

import pytest

from services.delivery import handlers
from services.delivery.domain import BusyError, ProviderError, retry_policy
from services.delivery.handlers import Expired, Returned, Sent
from shared.contracts.message_facts import ReasonCode
from shared.errors import (
    DeferredError,
    ExpiredError,
    InfrastructureError,
    PermanentError,
    TransientError,
)
from shared.resilience.lanes import INITIAL_OPEN_TIME, Breaker
from shared.resilience.retry import GiveUp, decide
from shared.topology import TIERS
from tests.fakes.message_sender import NOW, OF_MAILING, Setup, email, expiry


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
