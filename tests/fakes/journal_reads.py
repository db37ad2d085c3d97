"""A journal's database with facts, and the handlers that read it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from services.journal.app import SCHEMA
from services.journal.attempts.requests import AttemptRequests
from services.journal.attempts.store import Entries
from services.journal.audit.requests import AuditRequests
from services.journal.audit.store import Audit
from services.journal.partitions import Partitions
from services.journal.store import Position, Store
from services.journal.targets.requests import TargetRequests
from services.journal.targets.store import Figures
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.security.encryption import SecretCipher
from tests.fakes.journal import RETENTION, empty_journal

CIPHER = SecretCipher([bytes(32)])
OPERATOR = RequestContext("operator", operator=True, actor="Omar")


@dataclass(slots=True)
class Reads:
    """The handlers of the journal's reads, without a broker."""

    database: Database
    store: Store
    handlers: dict[str, Any]
    position: Position

    async def add(self, facts: Iterable[BaseModel]) -> None:
        """Store facts, as if they were one message of the stream."""
        after = Position(self.position.offset + 1, None)
        await self.store.add(list(facts), self.position, after)
        self.position = after

    async def __call__(self, operation: str, context: RequestContext, **request: Any) -> Any:
        """Send a request, and return the response as JSON, or the failure."""
        response = await self.handlers[operation](context, to_json(request))
        return response if isinstance(response, Failure) else response.model_dump(mode="json")


@asynccontextmanager
async def journal_reads(database_url: str) -> AsyncIterator[Reads]:
    """Yield the handlers of an empty journal."""
    await empty_journal(database_url)
    database = Database(database_url, name="test reads", health=Health(), schema=SCHEMA)
    running = asyncio.create_task(database.run())
    slots = asyncio.Semaphore(3)
    entries = Entries(database, CIPHER, time.monotonic)
    try:
        await database.ready()
        yield Reads(
            database,
            Store(database, Partitions(database), retention=RETENTION),
            {
                **AttemptRequests(entries, slots).handlers(),
                **TargetRequests(Figures(database), slots, time.time).handlers(),
                **AuditRequests(Audit(database), slots).handlers(),
            },
            Position(-1, None),
        )
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
