"""S11: whatever is killed or restarted, every event is notified, none early, few repeated."""

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path

import aio_pika
import asyncpg

from deploy.local.database import Database
from tests.fakes.scheduling import (
    callback_stand_in,
    migrated,
    moment,
    schedule,
    scheduler,
)
from tests.fakes.service import Service
from tests.fakes.waiting import until

EVENTS = 5000
URL = "http://127.0.0.1:9/hooks/none"
# What one killed replica may have claimed and published without its settlement: the batches in
# flight.
REPEATS = 3000


async def publish(amqp_url: str, count: int, first: float, seconds: float) -> set[str]:
    """Schedule so many events, evenly over some seconds; gives their keys."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        keys = [f"event-{number}" for number in range(count)]
        bodies = [
            {
                "run_at": moment(first + seconds * number / count),
                "url": URL,
                "group_key": "storm",
                "event_key": key,
                "hmac_secret": "s",
                "context": {"number": number},
            }
            for number, key in enumerate(keys)
        ]
        for start in range(0, count, 500):
            await asyncio.gather(*(schedule(channel, body) for body in bodies[start : start + 500]))
    return set(keys)


async def statuses(database_url: str) -> dict[str, int]:
    """How many events have which status, wherever they are kept."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "SELECT status::text, count(*) FROM (SELECT status FROM scheduler.events"
            " UNION ALL SELECT status FROM scheduler.history) every GROUP BY 1"
        )
    finally:
        await connection.close()
    return {row["status"]: row["count"] for row in rows}


async def settled(database_url: str) -> None:
    async def all_notified() -> bool:
        return await statuses(database_url) == {"notified": EVENTS}

    await until(all_notified, 60)


async def test_s11_two_replicas_one_killed_the_database_crashing_5000_events_all_arrive(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    database_url = own_database.url
    await migrated(database_url)
    with ExitStack() as stack:

        def replica() -> Service:
            # A short lease: what a killed replica had claimed comes again within the test.
            return stack.enter_context(
                scheduler(tmp_path, amqp_url, database_url, RINGBACK_SCHEDULER_LEAST_LEASE="5")
            )

        first, second = replica(), replica()
        await asyncio.gather(first.ready(), second.ready())
        async with callback_stand_in(amqp_url) as notifications:
            keys = await publish(amqp_url, EVENTS, first=6, seconds=12)
            await until(lambda: len(notifications.came) > EVENTS / 10, 60)
            first.kill()
            await until(lambda: len(notifications.came) > EVENTS / 4, 60)
            third = replica()
            own_database.stop(immediate=True)
            own_database.start()
            await until(lambda: len(notifications.came) > EVENTS / 2, 60)
            second.kill()
            await until(lambda: notifications.keys == keys, 90)
            assert notifications.earliest >= 0
            assert notifications.repeats <= REPEATS
            await settled(database_url)
        assert not third.exited()


async def test_row_18_a_replica_suspended_longer_than_its_lease_settles_nothing_wrongly(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    database_url = own_database.url
    await migrated(database_url)
    lease = {"RINGBACK_SCHEDULER_LEAST_LEASE": "3"}
    with (
        scheduler(tmp_path, amqp_url, database_url, **lease) as sleeper,
        scheduler(tmp_path, amqp_url, database_url, **lease) as other,
    ):
        await asyncio.gather(sleeper.ready(), other.ready())
        async with callback_stand_in(amqp_url) as notifications:
            keys = await publish(amqp_url, 1000, first=3, seconds=3)
            await until(lambda: len(notifications.came) > 100)
            sleeper.signal(signal.SIGSTOP)
            await until(lambda: notifications.keys == keys, 60)
            sleeper.signal(signal.SIGCONT)
            await sleeper.ready()

            async def all_notified() -> bool:
                return await statuses(database_url) == {"notified": 1000}

            await until(all_notified, 60)
            assert notifications.earliest >= 0
            assert not sleeper.exited()
