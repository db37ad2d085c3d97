"""The journal as processes: another one continues after a kill, and each is ready."""

import asyncio
import signal
from pathlib import Path

from tests.fakes.journal import (
    declared,
    delivered,
    empty_journal,
    fact_publisher,
    publish,
    running_journal,
)
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

RUN_JOURNAL = ("-m", "services", "run", "journal", "--metrics-port", "0")


async def _stored(service: Service) -> float:
    return await service.metric("ringback_journal_facts_total", outcome="stored")


async def test_n6_after_a_kill_another_process_stores_what_follows(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    await empty_journal(database_url)
    settings = {"RINGBACK_DATABASE_URL": database_url}
    first, second = ([delivered() for _ in range(30)] for _ in range(2))
    directories = [tmp_path / name for name in ("one", "two")]
    for directory in directories:
        directory.mkdir()
    with (
        running(directories[0], amqp_url, settings, RUN_JOURNAL) as one,
        running(directories[1], amqp_url, settings, RUN_JOURNAL) as other,
    ):
        await asyncio.gather(one.ready(), other.ready())
        async with fact_publisher(amqp_url, declared()) as publisher:
            await publish(publisher, first)
            await until(lambda: _total(one, other, len(first)))
            reading, waiting = (one, other) if await _stored(one) else (other, one)
            reading.kill()
            await publish(publisher, second)
            await until(lambda: _total(waiting, waiting, 2 * len(second)))
        waiting.signal(signal.SIGTERM)
        assert await waiting.exit_code() == 0, waiting.output
    async with running_journal(amqp_url, database_url) as journal:
        await journal.has([*first, *second])


async def _total(one: Service, other: Service, expected: int) -> bool:
    return await _stored(one) + await _stored(other) >= expected
