"""The handler of the callback service, with its lanes and a real receiver."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.callback.handlers import CallbackSender
from services.callback.metrics import TargetLabels
from services.callback.pauses import Pauses
from services.callback.settings import CallbackSettings
from services.sandbox.misbehaviour import response
from shared.amqp.codec import Properties
from shared.amqp.message import Message
from shared.clock import SystemClock
from shared.contracts.callback import SendCallback
from shared.errors import DeferredError, ExpiredError, TransientError
from shared.resilience.lanes import Breaker, Lanes
from tests.fakes.receivers import ClientConnection, respond, serve
from tests.fakes.sending import client
from tests.fakes.waiting import until


@asynccontextmanager
async def sending(
    lane_limit: int = 10,
) -> AsyncIterator[tuple[CallbackSender, list[tuple[str, Breaker, float]]]]:
    """Yield a sender, and the changes of its circuit breakers."""
    changes: list[tuple[str, Breaker, float]] = []
    settings = CallbackSettings()
    lanes = Lanes(
        max_in_flight=lane_limit,
        prefetch=100,
        max_failures=5,
        clock=asyncio.get_running_loop().time,
        observe=lambda lane, *change: changes.append((lane.target, *change)),
        report_full=lambda *_: None,
    )
    async with client() as http:
        sender = CallbackSender(
            http,
            lanes=lanes,
            pauses=Pauses(SystemClock()),
            labels=TargetLabels(10),
            settings=settings,
            clock=SystemClock(),
        )
        yield sender, changes


def command(url: str, **fields: Any) -> SendCallback:
    return SendCallback(target_url=url, hmac_secret="secret", payload={}, **fields)


def message() -> Message:
    return Message("id-1", Properties(), b"")


async def test_finding_b13_a_callback_that_expires_while_it_waits_in_the_lane_is_not_sent() -> None:
    release = asyncio.Event()

    async def respond_later(connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await release.wait()
            await connection.write(response())

    async with sending(lane_limit=1) as (sender, _), serve(respond_later) as receiver:
        first = asyncio.create_task(sender.handle(message(), command(receiver.url)))
        await until(lambda: receiver.requests)
        expires_at = datetime.now(UTC) + timedelta(seconds=0.2)
        waiting = asyncio.create_task(
            sender.handle(message(), command(receiver.url, expires_at=expires_at))
        )
        await until(lambda: datetime.now(UTC) > expires_at)
        release.set()
        with pytest.raises(ExpiredError):
            await waiting
        await first
        assert len(receiver.requests) == 1
        await sender.handle(message(), command(receiver.url))  # the place is free again


async def test_finding_b8_a_429_with_retry_after_pauses_one_client_only() -> None:
    async with (
        sending() as (sender, changes),
        serve(respond(429, {"Retry-After": "30"})) as receiver,
    ):
        for number in range(10):
            with pytest.raises(TransientError) as failed:
                await sender.handle(message(), command(receiver.url, client_id=f"client-{number}"))
            assert failed.value.retry_after == 30
        with pytest.raises(DeferredError, match="paused"):
            await sender.handle(message(), command(receiver.url, client_id="client-0"))
        assert len(receiver.requests) == 10
    assert changes == []


async def test_finding_b8_a_429_without_retry_after_opens_the_breaker_of_its_client() -> None:
    async with sending() as (sender, changes), serve(respond(429)) as receiver:
        for _ in range(5):
            with pytest.raises(TransientError):
                await sender.handle(message(), command(receiver.url, client_id="one"))
        assert [breaker for _, breaker, _ in changes] == [Breaker.OPEN]
        with pytest.raises(DeferredError, match="breaker open"):
            await sender.handle(message(), command(receiver.url, client_id="one"))
        with pytest.raises(TransientError):
            await sender.handle(message(), command(receiver.url, client_id="two"))
