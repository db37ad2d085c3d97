"""N6: how far the journal is behind, and what it remembers over a lost connection."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from services.journal import ingestion
from services.journal.store import Store
from shared.amqp.publisher import Publisher
from shared.amqp.stream import last_message
from tests.fakes.journal import (
    declared,
    delivered,
    empty_journal,
    fact_publisher,
    publish,
    raw,
    running_journal,
)
from tests.fakes.waiting import until


@pytest.fixture
async def publisher(
    amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Publisher]:
    monkeypatch.setattr(ingestion, "CHECK_INTERVAL", 0.1)
    await empty_journal(database_url)
    async with fact_publisher(amqp_url, declared()) as client:
        yield client


async def test_n6_a_repeat_is_recognised_after_a_lost_connection(
    publisher: Publisher, amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The confirm and the journal's connection are lost with the same node."""
    facts, lost = [delivered()], asyncio.Event()
    message = raw(f'{{"facts": [{facts[0].model_dump_json()}]}}')

    async def lose(*_: Any) -> None:
        lost.set()
        monkeypatch.setattr(ingestion, "last_message", last_message)
        raise ConnectionResetError("closed by the test")

    async with running_journal(amqp_url, database_url) as journal:
        await publisher.publish_all([message])
        await journal.has(facts)
        monkeypatch.setattr(ingestion, "last_message", lose)
        await lost.wait()
        await publisher.publish_all([message])
        more = [delivered()]
        await publish(publisher, more)
        await journal.has([*facts, *more])


class SlowStore(Store):
    """It stores second attempts after a signal."""

    began = asyncio.Event()
    release = asyncio.Event()

    async def add(self, facts: Sequence[BaseModel], *args: Any) -> int:
        if any(getattr(fact, "attempt", 1) > 1 for fact in facts):
            self.began.set()
            await self.release.wait()
        return await super().add(facts, *args)


async def test_n6_a_message_after_a_quiet_hour_causes_no_lag(
    publisher: Publisher, amqp_url: str, database_url: str
) -> None:
    old = raw(f'{{"facts": [{delivered().model_dump_json()}]}}')
    old.properties.timestamp = int(time.time()) - 3600
    async with running_journal(amqp_url, database_url, store=SlowStore) as journal:
        await publisher.publish_all([old])
        await until(journal.ids)
        await publish(publisher, [delivered(attempt=2)])
        await SlowStore.began.wait()

        async def lag() -> float | None:
            [row] = await journal.rows("position")
            return row["lag"] or None

        measured = await until(lag)
        SlowStore.release.set()
    assert 0 < measured < 60
