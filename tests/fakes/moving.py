"""Dead letters in their queues, and the parts of a journal that index and move them."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel
from pydantic_core import to_json

from services.journal.app import SCHEMA
from services.journal.audit.store import Audit
from services.journal.dead.index import LetterIndex
from services.journal.dead.letters import LetterReader
from services.journal.dead.moving import Moves
from services.journal.dead.reconciliation import Reconciliation
from services.journal.dead.requests import DeadRequests
from services.journal.jobs.requests import JobRequests
from services.journal.jobs.store import Jobs
from services.journal.jobs.worker import JobWorker
from services.journal.reading import MAX_CONCURRENT
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection, connect
from shared.amqp.dead_letters import parse_dead_letter
from shared.amqp.fact_sender import FactSender
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.amqp.queue_browser import browse_queue
from shared.amqp.rpc import RequestContext
from shared.clock import SystemClock
from shared.contracts import headers
from shared.contracts.journal import JobKind
from shared.contracts.journal_facts import LetterDead
from shared.contracts.requests import Failure, RpcOperation
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.topology import dead_queue, topology
from tests.fakes.journal import empty_journal
from tests.fakes.waiting import until

OMAR = RequestContext(operator=True, actor="omar")
DIED_AT = 1_795_000_000_000
TARGET = "https://example.com:443"


def dead_letter(
    queue: str,
    *,
    own_id: str | None = "new",
    reason: str = "the receiver responded with 410: gone for good",
    target: str = TARGET,
    client_id: str | None = "shop",
    **fields: Any,
) -> OutgoingMessage:
    """Return a message for a dead-letter queue, as a consumer publishes it."""
    body = {"id": uuid4().hex, "target_url": f"{target}/hook?token=canary", "client_id": client_id}
    ours = {headers.REASON: reason, headers.DIED_AT: DIED_AT, headers.ATTEMPT: 3}
    if own_id is not None:
        ours[headers.LETTER] = new_id() if own_id == "new" else own_id
    properties = Properties(
        content_type="application/json",
        type="SendCallback",
        message_id=new_id(),
        delivery_mode=PERSISTENT,
        headers=ours,
    )
    return OutgoingMessage(dead_queue(queue), properties, json.dumps(body | fields).encode())


@dataclass(slots=True)
class Mover:
    """The parts of a journal that concern dead letters, in the test's process."""

    url: str
    database: Database
    index: LetterIndex
    jobs: Jobs
    publisher: Publisher
    facts: FactSender
    worker: JobWorker
    reconciliation: Reconciliation
    handlers: dict[str, Any]

    async def put(self, letters: Iterable[OutgoingMessage]) -> None:
        """Publish dead letters that have no facts."""
        await self.publisher.publish_all(list(letters))

    async def add(self, queue: str, letters: Iterable[OutgoingMessage]) -> None:
        """Publish dead letters, and apply their facts to the index."""
        letters = list(letters)
        await self.put(letters)
        await self.record(*(fact_of(queue, letter) for letter in letters))

    async def record(self, *facts: BaseModel) -> None:
        """Apply facts to the index."""
        async with self.database.transaction() as connection:
            await self.index.record(connection, facts)

    async def call(
        self, operation: RpcOperation[Any], context: RequestContext = OMAR, **fields: Any
    ) -> Any:
        """Call an operation, and return its response as JSON values."""
        response = await self.handlers[operation.name](context, to_json(fields))
        return response if isinstance(response, Failure) else response.model_dump(mode="json")

    async def start(
        self,
        operation: RpcOperation[Any],
        queue: str,
        context: RequestContext = OMAR,
        **fields: Any,
    ) -> Any:
        """Start a job, and return the response as JSON values."""
        return await self.call(operation, context, queue=queue, move=fields)

    async def ended(self, job: str) -> dict[str, Any]:
        """Wait until a job is not running, and return it."""

        async def over() -> Any:
            found = await self.jobs.get(UUID(job))
            assert found is not None
            return found.view().model_dump(mode="json") if found.finished_at else None

        found: dict[str, Any] = await until(over, 60.0)
        return found

    async def total(self, queue: str) -> int:
        """Return the number of letters in the index, which the counts must agree with."""
        rows = await self.database.fetch(
            "SELECT count(*) AS n FROM journal.letters WHERE queue = $1", queue
        )
        async with self.database.transaction() as connection:
            total = await self.index.total(connection, queue)
        assert rows[0]["n"] == total
        return total

    async def letters(self, queue: str) -> list[Any]:
        """Return the dead letters in their queue, with their fields parsed."""
        return await self.read(dead_queue(queue))

    async def read(self, queue: str) -> list[Any]:
        """Return the messages of a queue as dead letters."""
        async with self.connected() as broker, browse_queue(broker, queue) as browser:
            return [parse_dead_letter(delivery) async for delivery in browser]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[BrokerConnection]:
        """Open a connection."""
        async with connect(self.url, name="test") as broker:
            yield broker


def fact_of(queue: str, letter: OutgoingMessage) -> LetterDead:
    """Return the fact about a letter of `dead_letter`."""
    body = json.loads(letter.body)
    ours = letter.properties.headers or {}
    own_id = ours[headers.LETTER]
    return LetterDead(
        fact_id=own_id,
        at="2026-11-18T11:06:40Z",
        queue=queue,
        letter_id=own_id,
        logical_id=body["id"],
        reason=ours[headers.REASON],
        target=body["target_url"].partition("/hook")[0],
        client_id=body["client_id"],
    )


@asynccontextmanager
async def mover(url: str, database_url: str) -> AsyncIterator[Mover]:
    """Run the parts, except for the worker and the reconciliation."""
    await empty_journal(database_url)
    health, clock = Health(), SystemClock()
    table = topology()
    database = Database(database_url, name="test", health=health, schema=SCHEMA)
    publisher = Publisher(url, name="test publisher", topology=table, health=health)
    facts = FactSender(publisher, url=url, name="test", health=health)
    index, jobs = LetterIndex(database), Jobs(database, Audit(database))
    moves = Moves(
        database,
        jobs,
        index,
        publisher=publisher,
        facts=facts,
        url=url,
        name="test moves",
        clock=clock,
    )
    worker = JobWorker(jobs, {JobKind.REDRIVE: moves.work, JobKind.DISCARD: moves.work})
    reconciliation = Reconciliation(
        index,
        jobs,
        amqp_url=url,
        database_url=database_url,
        name="test reconciliation",
        topology=table,
        health=Health(),
        clock=clock,
    )
    slots, reader = asyncio.Semaphore(MAX_CONCURRENT), LetterReader(url, name="test letters")
    requests = DeadRequests(database, index, jobs, reader, slots, wake=worker.wake)
    handlers = {**requests.handlers(), **JobRequests(jobs, slots).handlers()}
    tasks = [asyncio.create_task(part.run()) for part in (database, publisher, facts)]
    try:
        await publisher.ready()
        await database.ready()
        await until(lambda: health.ready)
        yield Mover(
            url, database, index, jobs, publisher, facts, worker, reconciliation, dict(handlers)
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def working(worker: JobWorker) -> AsyncIterator[None]:
    """Work on jobs until the block ends."""
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
