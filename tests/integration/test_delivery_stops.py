"""M2: no message of a stopped mailing is sent, by any process, after the stop is committed."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.delivery import store as store_module
from services.delivery.app import SCHEMA
from services.delivery.domain import WithheldError
from services.delivery.stops import MAX_AGE, Stops
from services.delivery.store import Store
from shared.postgres.pool import Database, StoreConnectionLostError
from shared.process.health import Health
from tests.fakes.delivering import (
    delivery_database,
    delivery_in_process,
    message_client,
    requests_to_delivery,
    seconds_from_now,
    settings,
    sms,
)
from tests.fakes.sandbox import running_sandbox
from tests.fakes.waiting import until


class Clock:
    """A monotonic clock; a suspended process finds that it has moved on."""

    at = 1000.0

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    url = await delivery_database(database_url)
    database = Database(url, name="test", health=Health(), schema=SCHEMA)
    running = asyncio.create_task(database.run())
    await database.ready()
    yield Store(database)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def process(store: Store) -> AsyncIterator[tuple[Stops, Clock]]:
    """Run the stops of one process during the block."""
    clock = Clock()
    stops = Stops(store, clock.monotonic)
    running = asyncio.create_task(stops.run())
    try:
        yield stops, clock
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def later(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def is_stopped(stops: Stops, mailing: str) -> bool:
    try:
        await stops.check(mailing)
    except WithheldError:
        return True
    return False


async def test_m2_a_stop_holds_a_second_after_its_commit_in_each_process(store: Store) -> None:
    mailing, other = uuid4().hex, uuid4().hex
    async with process(store) as (one, clock), process(store) as (new, _):
        assert not await is_stopped(one, mailing)
        await store.stop(mailing, 1, None)
        assert await is_stopped(new, mailing)
        clock.at += MAX_AGE  # as in a process that was suspended
        assert await is_stopped(one, mailing)
        assert not await is_stopped(one, other)
        assert MAX_AGE <= 1, "a stop holds two seconds after it was confirmed"


async def test_m2_a_reading_that_took_long_is_not_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop is committed after the statement has read, and before its result arrives."""
    mailing, read = uuid4().hex, Store.stops
    readings: list[None] = []
    async with process(store) as (stops, clock):

        async def slow(self: Store, mailings: Iterable[str]) -> Any:
            found = await read(self, list(mailings))
            if not readings:
                await store.stop(mailing, 1, None)
                clock.at += MAX_AGE
            readings.append(None)
            return found

        monkeypatch.setattr(Store, "stops", slow)
        assert await is_stopped(stops, mailing)
        assert len(readings) == 2


async def test_m2_a_stop_in_the_future_is_exact(store: Store) -> None:
    mailing = uuid4().hex
    await store.stop(mailing, 1, later(MAX_AGE / 2))
    async with process(store) as (stops, clock):
        assert not await is_stopped(stops, mailing)
        clock.at += MAX_AGE / 2
        assert await is_stopped(stops, mailing)


async def test_m2_an_older_request_does_not_change_a_newer_stop(store: Store) -> None:
    mailing = uuid4().hex
    async with process(store) as (stops, clock):

        async def stop(version: int, at: datetime | None) -> bool:
            await store.stop(mailing, version, at)
            clock.at += MAX_AGE
            return await is_stopped(stops, mailing)

        assert await stop(2, None)
        assert await stop(1, later(60)), "a request to resume from before the pause"
        assert not await stop(3, later(60)), "resumed"
        assert not await stop(2, None), "a late repeat of the pause"


async def test_m2_messages_in_flight_share_one_reading_of_their_mailing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement for each message would cost as much CPU as the rest of its delivery."""
    read, statements = Store.stops, []

    async def counted(self: Store, mailings: Iterable[str]) -> Any:
        statements.append(list(mailings))
        return await read(self, mailings)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "stops", counted)
    mailings = [uuid4().hex for _ in range(3)]
    async with process(store) as (stops, clock):
        for _ in range(10):
            await asyncio.gather(*(stops.check(mailing) for mailing in mailings * 100))
            clock.at += MAX_AGE / 10
        assert sorted(map(sorted, statements)) == [sorted(mailings)]


async def test_m2_nothing_is_sent_while_the_database_is_unavailable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*_: object) -> None:
        raise StoreConnectionLostError("the connection is lost")

    async with process(store) as (stops, _):
        monkeypatch.setattr(Store, "stops", unavailable)
        with pytest.raises(StoreConnectionLostError):
            await stops.check(uuid4().hex)


async def test_m2_a_stop_is_forgotten_when_no_message_can_be_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailing = uuid4().hex
    await store.stop(mailing, 1, None)
    await store.delete_old(3600, 10)
    assert await store.stops([mailing]) == {mailing: 0.0}
    monkeypatch.setattr(store_module, "STOP_RETENTION", 0.0)
    await store.delete_old(3600, 10)
    assert await store.stops([mailing]) == {}


async def test_m2_an_expired_message_of_a_mailing_is_settled_by_it_and_no_dead_letter(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, database_url: str
) -> None:
    url = await delivery_database(database_url)
    late = sms(mailing_id=uuid4().hex, expires_at=seconds_from_now(-1))
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        async with delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)):
            await client.send(late)
            await client.fact(late, "expired")
            assert await client.length("messages.sms.dead") == 0
        assert (await sandbox.get("/api/sms"))["items"] == []


async def test_m2_a_stopped_message_is_returned_and_can_be_published_again(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, database_url: str
) -> None:
    url = await delivery_database(database_url)
    mailing = uuid4().hex
    stopped = sms(mailing_id=mailing, recipient_id="client-7")
    sent = sms(mailing_id=mailing, recipient_id="client-8")
    async with (
        running_sandbox() as sandbox,
        message_client(amqp_url) as client,
        delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)),
        requests_to_delivery(amqp_url) as request,
    ):
        await client.send(sent)
        await client.fact(sent, "sent")
        response = await request(mailing_id=mailing, version=1)
        assert response == {"mailing_id": mailing}
        await asyncio.sleep(MAX_AGE)  # the promise itself
        await client.send(stopped, sent)
        returned = await client.fact(stopped, "returned")
        assert (returned["code"], returned["mailing_id"]) == ("stopped", mailing)
        assert returned["recipient_id"] == "client-7"
        await until(lambda: client.outcomes(sent) == ["sent", "sent"])
        assert [each["id"] for each in (await sandbox.get("/api/sms"))["items"]] == [sent["id"]]

        await request(mailing_id=mailing, version=2, at=seconds_from_now(60))
        await asyncio.sleep(MAX_AGE)
        await client.send(stopped)
        await client.fact(stopped, "sent")
        assert [await client.length(f"messages.sms{end}") for end in ("", ".dead")] == [0, 0]
        for message in (stopped, sent):
            assert len(await sandbox.received("/api/sms", to=message["phone"])) == 1
