"""Killed at any point, without database, without broker: every event is acted on, under one id."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.local.broker import Broker
from deploy.local.database import Database
from services.ingestion.app import SCHEMA
from shared.postgres.migrations import migrate
from tests.acceptance.crashing_ingestion import POINTS
from tests.fakes.ingesting import RUN_INGESTION, Outskirts, outskirts, send_all, signed_up
from tests.fakes.service import running
from tests.fakes.waiting import until

CRASHING = ("-m", "tests.acceptance.crashing_ingestion")


def some(count: int) -> list[dict[str, Any]]:
    return [signed_up() for _ in range(count)]


def ids(bodies: Iterable[dict[str, Any]]) -> set[str]:
    return {body["event_id"] for body in bodies}


async def acted_on(around: Outskirts, bodies: list[dict[str, Any]], within: float = 30.0) -> None:
    """Wait until each has had its posting; no event has two under different ids."""
    wanted = ids(bodies)
    await until(lambda: around.ids().keys() >= wanted, within)
    assert {event: len(found) for event, found in around.ids().items()} == dict.fromkeys(wanted, 1)


def repeats(around: Outskirts) -> int:
    return sum(found.total() - 1 for found in around.ids().values())


@asynccontextmanager
async def flowing(around: Outskirts) -> AsyncIterator[list[dict[str, Any]]]:
    """Send events, each twice, all through the block; the list of what was confirmed."""
    confirmed: list[dict[str, Any]] = []
    stop = asyncio.Event()

    async def send() -> None:
        while not stop.is_set():
            bodies = some(20)
            await send_all(around, bodies + bodies)
            confirmed.extend(bodies)
            await asyncio.sleep(0.05)  # a steady flow, not a wait for anything

    sending = asyncio.create_task(send())
    try:
        yield confirmed
    finally:
        stop.set()
        await sending


@pytest.mark.parametrize("point", POINTS)
async def test_e3_killed_at_any_point_every_event_is_acted_on_under_one_id(
    amqp_url: str, own_database: Database, tmp_path: Path, point: str
) -> None:
    await migrate(own_database.url, SCHEMA)
    settings = {"RINGBACK_DATABASE_URL": own_database.url}
    bodies = some(30)
    async with outskirts(amqp_url) as around:
        with running(tmp_path, amqp_url, settings, (*CRASHING, point)) as dying:
            while not dying.exited():
                await send_all(around, bodies + bodies)
                bodies += some(5)
            assert await dying.exit_code() == -signal.SIGKILL, dying.output
        await send_all(around, bodies)
        with running(tmp_path, amqp_url, settings, (*CRASHING, "never")) as second:
            await second.ready()
            await acted_on(around, bodies)
            # What was published and not yet deleted, is published once more.
            assert max(found.total() for found in around.ids().values()) <= 2


async def test_row_19_a_database_that_stops_and_starts_costs_no_event(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await migrate(own_database.url, SCHEMA)
    settings = {"RINGBACK_DATABASE_URL": own_database.url}
    async with outskirts(amqp_url) as around:
        with running(tmp_path, amqp_url, settings, RUN_INGESTION) as it:
            await it.ready()
            async with flowing(around) as confirmed:
                await until(lambda: around.postings)
                await asyncio.to_thread(own_database.stop, immediate=True)
                held = len(confirmed)
                await until(lambda: len(confirmed) > held + 100)
                await asyncio.to_thread(own_database.start)
                await until(lambda: around.of(confirmed[held + 80]["event_id"]), 30)
            await acted_on(around, confirmed)
            assert repeats(around) <= 1000  # at most two batches


async def test_row_1_a_broker_killed_under_load_costs_no_command(
    own_broker: Broker, own_database: Database, tmp_path: Path
) -> None:
    await migrate(own_database.url, SCHEMA)
    settings = {"RINGBACK_DATABASE_URL": own_database.url}
    bodies = some(2000)
    with running(tmp_path, own_broker.url, settings, RUN_INGESTION) as it:
        await it.ready()
        await asyncio.to_thread(own_broker.sync)  # else its queues may come back empty
        async with outskirts(own_broker.url) as before:
            await send_all(before, bodies)
            assert len(before.ids()) < len(bodies), "too late to show anything"
            await asyncio.to_thread(own_broker.kill)
        await asyncio.to_thread(own_broker.start)
        async with outskirts(own_broker.url) as after:
            after.postings.extend(before.postings)
            await acted_on(after, bodies)
        assert not it.logged("bug")


async def test_row_32_told_to_stop_under_load_it_leaves_nothing_in_the_outbox(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await migrate(own_database.url, SCHEMA)
    settings = {"RINGBACK_DATABASE_URL": own_database.url}
    async with outskirts(amqp_url) as around:
        with running(tmp_path, amqp_url, settings, RUN_INGESTION) as it:
            await it.ready()
            async with flowing(around) as confirmed:
                await until(lambda: around.postings)
                it.signal(signal.SIGTERM)
                assert await it.exit_code() == 0, it.output
            connection = await asyncpg.connect(own_database.url)
            assert await connection.fetchval("SELECT count(*) FROM ingestion.outbox") == 0
            await connection.close()
        with running(tmp_path, amqp_url, settings, RUN_INGESTION):
            await acted_on(around, confirmed)
        assert repeats(around) == 0
