"""N8: the last list of paused targets in the stream is always that of the database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.journal.app import SCHEMA
from services.journal.pauses.announcing import Announcer
from services.journal.pauses.store import PausedTargetStore, TooManyPausedError
from shared.amqp.connection import BrokerConnection, connect
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.amqp.stream import last_message
from shared.contracts.controls import MAX_PAUSED, PausedTargets
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.topology import CONTROLS, topology
from tests.fakes.journal import empty_journal

A, B = "https://a.example:443", "https://b.example:443"


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PausedTargetStore]:
    await empty_journal(database_url)
    database = Database(database_url, name="test", health=Health(), schema=SCHEMA)
    running = asyncio.create_task(database.run())
    await database.ready()
    await database.execute("DELETE FROM journal.paused_targets")
    try:
        yield PausedTargetStore(database)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def publisher(amqp_url: str) -> AsyncIterator[Publisher]:
    publisher = Publisher(
        amqp_url, name="test", topology=topology().only((CONTROLS,)), health=Health()
    )
    running = asyncio.create_task(publisher.run())
    await publisher.ready()
    try:
        yield publisher
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def last_list(broker: BrokerConnection) -> PausedTargets:
    message = await last_message(broker, CONTROLS)
    assert message is not None
    assert message.properties.type == "PausedTargets"
    return PausedTargets.model_validate_json(message.body)


@asynccontextmanager
async def announcing(announcer: Announcer) -> AsyncIterator[None]:
    running = asyncio.create_task(announcer.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_n8_each_change_has_a_higher_version(store: PausedTargetStore) -> None:
    versions = [(await store.current()).version]
    for change in (store.pause(A, "ada"), store.pause(B, None), store.resume(A)):
        assert await change
        versions.append((await store.current()).version)
    assert versions == sorted(set(versions))
    assert (await store.current()).targets == [B]
    assert not await store.pause(B, "ada")
    assert not await store.resume(A)


async def test_n8_a_list_that_is_published_late_is_followed_by_the_right_one(
    store: PausedTargetStore, publisher: Publisher, amqp_url: str
) -> None:
    """Between the read of the list and its publish, another process changes the list."""
    first = Announcer(store, publisher)
    second = Announcer(store, publisher)

    class LatePublisher:
        """Publishes a list only after another process has changed and published it."""

        changed = False

        def publish(self, message: OutgoingMessage) -> Any:
            return self._publish(message)

        async def _publish(self, message: OutgoingMessage) -> None:
            if not self.changed:
                self.changed = True
                await store.pause(B, None)
                await second.announce()
            await publisher.publish(message)

    await store.pause(A, None)
    first._publisher = LatePublisher()  # type: ignore[assignment]  # noqa: SLF001 - a slow broker
    await first.announce()
    async with connect(amqp_url, name="test") as broker:
        assert await last_list(broker) == await store.current()
    assert (await store.current()).targets == [A, B]


async def test_n8_a_lost_stream_has_the_list_again_when_a_journal_starts(
    store: PausedTargetStore, publisher: Publisher, amqp_url: str
) -> None:
    await store.pause(A, None)
    async with connect(amqp_url, name="test") as broker:
        channel = await broker.connection.channel()
        await channel.queue_delete(CONTROLS)
        async with announcing(Announcer(store, publisher)):
            async with asyncio.timeout(30):
                while True:
                    try:
                        found = await last_list(broker)
                    except Exception:  # noqa: BLE001 - it is not declared yet
                        await asyncio.sleep(0.1)
                    else:
                        break
        assert found == await store.current()


async def test_n8_the_number_of_paused_targets_is_limited(store: PausedTargetStore) -> None:
    await store._database.execute(  # noqa: SLF001 - a thousand requests would take a minute
        "INSERT INTO journal.paused_targets (target)"
        " SELECT 'https://' || n || '.example:443' FROM generate_series(1, $1::int) n",
        MAX_PAUSED,
    )
    with pytest.raises(TooManyPausedError):
        await store.pause(A, None)
    assert A not in (await store.current()).targets
