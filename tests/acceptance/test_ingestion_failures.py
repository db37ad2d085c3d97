"""Ingestion under kills and outages loses no event and keeps the ids of its commands."""

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
from tests.fakes.crash_points import slow_except
from tests.fakes.ingesting import (
    RUN_INGESTION,
    IngestionClient,
    ingestion_client,
    send_all,
    signed_up,
)
from tests.fakes.service import running
from tests.fakes.waiting import until

CRASHING = ("-m", "tests.acceptance.crashing_ingestion")


def new_events(count: int) -> list[dict[str, Any]]:
    return [signed_up() for _ in range(count)]


def ids(bodies: Iterable[dict[str, Any]]) -> set[str]:
    return {body["event_id"] for body in bodies}


async def wait_for_postings(
    client: IngestionClient, bodies: list[dict[str, Any]], within: float = 30.0
) -> None:
    """Wait for the posting of each event, and check that no event has two different ids."""
    expected = ids(bodies)
    await until(lambda: client.ids().keys() >= expected, within)
    assert {event: len(found) for event, found in client.ids().items()} == dict.fromkeys(
        expected, 1
    )


def repeats(client: IngestionClient) -> int:
    return sum(found.total() - 1 for found in client.ids().values())


@asynccontextmanager
async def event_stream(client: IngestionClient) -> AsyncIterator[list[dict[str, Any]]]:
    """Publish each event twice during the block, and yield the list of confirmed events."""
    confirmed: list[dict[str, Any]] = []
    stop = asyncio.Event()

    async def send() -> None:
        while not stop.is_set():
            bodies = new_events(20)
            await send_all(client, bodies + bodies)
            confirmed.extend(bodies)
            await asyncio.sleep(0.05)  # the rate of the stream; nothing is waited for

    sending = asyncio.create_task(send())
    try:
        yield confirmed
    finally:
        stop.set()
        await sending


@pytest.mark.parametrize("point", slow_except(POINTS, "after the commit", "after the confirm"))
async def test_e3_a_kill_at_any_point_loses_no_event_and_changes_no_id(
    amqp_url: str, own_database: Database, tmp_path: Path, point: str
) -> None:
    await migrate(own_database.url, SCHEMA)
    settings = {"RINGBACK_DATABASE_URL": own_database.url}
    bodies = new_events(30)
    async with ingestion_client(amqp_url) as client:
        with running(tmp_path, amqp_url, settings, (*CRASHING, point)) as dying:
            while not dying.exited():
                await send_all(client, bodies + bodies)
                bodies += new_events(5)
            assert await dying.exit_code() == -signal.SIGKILL, dying.output
        await send_all(client, bodies)
        with running(tmp_path, amqp_url, settings, (*CRASHING, "never")) as second:
            await second.ready()
            await wait_for_postings(client, bodies)
            # A command that was published and not deleted is published once more.
            assert max(found.total() for found in client.ids().values()) <= 2


async def test_row_19_a_database_restart_loses_no_event(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await migrate(own_database.url, SCHEMA)
    settings = {"RINGBACK_DATABASE_URL": own_database.url}
    async with ingestion_client(amqp_url) as client:
        with running(tmp_path, amqp_url, settings, RUN_INGESTION) as service:
            await service.ready()
            async with event_stream(client) as confirmed:
                await until(lambda: client.postings)
                await asyncio.to_thread(own_database.stop, immediate=True)
                count_at_stop = len(confirmed)
                await until(lambda: len(confirmed) > count_at_stop + 100)
                await asyncio.to_thread(own_database.start)
                await until(
                    lambda: client.postings_of(confirmed[count_at_stop + 80]["event_id"]), 30
                )
            await wait_for_postings(client, confirmed)
            assert repeats(client) <= 1000  # at most two batches


@pytest.mark.slow
async def test_row_1_a_killed_broker_loses_no_command(
    own_broker: Broker, own_database: Database, tmp_path: Path
) -> None:
    await migrate(own_database.url, SCHEMA)
    settings = {"RINGBACK_DATABASE_URL": own_database.url}
    bodies = new_events(2000)
    with running(tmp_path, own_broker.url, settings, RUN_INGESTION) as service:
        await service.ready()
        await asyncio.to_thread(
            own_broker.sync
        )  # otherwise its queues may be empty after the restart
        async with ingestion_client(own_broker.url) as before:
            await send_all(before, bodies[:1000])
            await until(lambda: before.postings)
            # Otherwise it may be as fast as this test, and have nothing to do at the kill.
            service.signal(signal.SIGSTOP)
            await send_all(before, bodies[1000:])
            await asyncio.to_thread(own_broker.kill)
            service.signal(signal.SIGCONT)
        await asyncio.to_thread(own_broker.start)
        async with ingestion_client(own_broker.url) as after:
            after.postings.extend(before.postings)
            await wait_for_postings(after, bodies)
        assert not service.logged("bug")


async def test_row_32_a_stop_under_load_leaves_an_empty_outbox(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await migrate(own_database.url, SCHEMA)
    settings = {"RINGBACK_DATABASE_URL": own_database.url}
    async with ingestion_client(amqp_url) as client:
        with running(tmp_path, amqp_url, settings, RUN_INGESTION) as service:
            await service.ready()
            async with event_stream(client) as confirmed:
                await until(lambda: client.postings)
                service.signal(signal.SIGTERM)
                assert await service.exit_code() == 0, service.output
            connection = await asyncpg.connect(own_database.url)
            assert await connection.fetchval("SELECT count(*) FROM ingestion.outbox") == 0
            await connection.close()
        with running(tmp_path, amqp_url, settings, RUN_INGESTION):
            await wait_for_postings(client, confirmed)
        assert repeats(client) == 0
