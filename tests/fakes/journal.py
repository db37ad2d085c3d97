"""A journal in the test's process, and the stream of facts that it reads."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
from pydantic import BaseModel

from services.journal.app import SCHEMA
from services.journal.ingestion import Ingestion
from services.journal.partitions import Partitions
from services.journal.store import Recorder, Store
from shared.amqp.codec import Properties
from shared.amqp.facts import fact_messages
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.contracts.facts import CallbackDelivered
from shared.postgres.migrations import migrate
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.topology import DEFAULT_BACKLOG, JOURNAL_FACTS, OUTCOMES, Topology, topology
from tests.fakes.waiting import until

RETENTION = timedelta(days=14)
TARGET = "https://example.com:443"


def delivered(**fields: Any) -> CallbackDelivered:
    """Return the fact that a callback was delivered."""
    callback_id = uuid4().hex
    given: dict[str, Any] = {
        "fact_id": f"{callback_id}/1",
        "at": datetime.now(UTC),
        "callback_id": callback_id,
        "client_id": "shop",
        "target": TARGET,
        "attempt": 1,
        "status": 200,
        "duration": 0.02,
    }
    return CallbackDelivered(**given | fields)


def declared(backlog: int = DEFAULT_BACKLOG) -> Topology:
    """Return the stream alone."""
    return topology(backlog=backlog).only((JOURNAL_FACTS,))


@asynccontextmanager
async def fact_publisher(amqp_url: str, table: Topology) -> AsyncIterator[Publisher]:
    """Yield a publisher that has declared the stream."""
    publisher = Publisher(amqp_url, name="test", topology=table, health=Health())
    running = asyncio.create_task(publisher.run())
    await publisher.ready()
    try:
        yield publisher
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def publish(publisher: Publisher, facts: Iterable[BaseModel]) -> None:
    """Publish facts as one message per type, and wait for the confirms."""
    await publisher.publish_all(list(fact_messages(facts)))


def raw(body: str) -> OutgoingMessage:
    """Return a message with facts that is not checked."""
    properties = Properties(
        content_type="application/json",
        type="Facts",
        message_id=new_id(),
        delivery_mode=PERSISTENT,
    )
    return OutgoingMessage(
        "callback.delivered", properties, body.encode(), exchange=OUTCOMES, mandatory=False
    )


@dataclass(slots=True)
class Journal:
    """A journal that stores facts for as long as the context of `running_journal` lasts."""

    database: Database
    store: Store
    ingestion: Ingestion
    health: Health
    task: asyncio.Task[None]

    async def ids(self) -> list[str]:
        """Return the ids of the stored callbacks, in the order in which they were stored."""
        rows = await self.database.fetch("SELECT callback_id FROM journal.entries ORDER BY seq")
        return [row["callback_id"] for row in rows]

    async def rows(self, table: str) -> list[Any]:
        """Return the rows of a table."""
        return await self.database.fetch(f"SELECT * FROM journal.{table}")  # noqa: S608 - a test's

    async def has(self, facts: Sequence[CallbackDelivered], within: float = 30.0) -> None:
        """Wait until these facts are stored, and check that each is stored once."""
        expected = [fact.callback_id for fact in facts]

        async def complete() -> bool:
            return set(await self.ids()) >= set(expected)

        await until(complete, within)
        stored = [each for each in await self.ids() if each in set(expected)]
        assert stored == expected


@asynccontextmanager
async def running_journal(  # noqa: PLR0913 - what tests vary
    amqp_url: str,
    database_url: str,
    *,
    table: Topology | None = None,
    store: type[Store] = Store,
    recorders: Sequence[Recorder] = (),
    batch: int = 5000,
) -> AsyncIterator[Journal]:
    """Run a journal."""
    health = Health()
    database = Database(database_url, name="test", health=health, schema=SCHEMA)
    stored = store(database, Partitions(database), retention=RETENTION, recorders=recorders)
    ingestion = Ingestion(
        stored,
        amqp_url=amqp_url,
        database_url=database_url,
        name="test journal",
        topology=table or declared(),
        health=health,
        batch=batch,
    )
    maintaining = asyncio.create_task(database.run())
    task = asyncio.create_task(ingestion.run())
    try:
        await database.ready()
        yield Journal(database, stored, ingestion, health, task)
    finally:
        for each in (task, maintaining):
            each.cancel()
        await asyncio.gather(task, maintaining, return_exceptions=True)


async def empty_journal(database_url: str) -> None:
    """Create the schema, or empty all its tables."""
    await migrate(database_url, SCHEMA)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "TRUNCATE journal.entries, journal.requests, journal.minutes, journal.gaps,"
            " journal.letters, journal.letter_counts, journal.moved_letters, journal.jobs,"
            " journal.audit, journal.breakers, journal.full_lanes, journal.paused_targets;"
            ' UPDATE journal.position SET "offset" = -1, message_id = NULL'
        )
    finally:
        await connection.close()
