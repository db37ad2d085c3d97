"""Endpoints on a real database, without a broker."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg
from pydantic import BaseModel

from services.subscriptions.app import SCHEMA
from services.subscriptions.endpoints.message_requests import EndpointMessageRequests
from services.subscriptions.endpoints.messages import EndpointMessages
from services.subscriptions.endpoints.replaying import Replays
from services.subscriptions.endpoints.requests import EndpointRequests
from services.subscriptions.endpoints.store import Endpoints
from services.subscriptions.endpoints.sweeping import Sweeper
from services.subscriptions.endpoints.worker import EndpointWorker
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure
from shared.ids import uuid7
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.security.encryption import SecretCipher
from tests.fakes.messenger import empty_subscriptions

URL: Final = "https://customer.example.com/hook-canary"
CIPHER: Final = SecretCipher([b"0123456789abcdef" * 2])
MAX_ENDPOINTS: Final = 50
REPLAY_RATE: Final = 100.0


class EndpointsClient:
    """The requests of one client, and the worker behind them. `facts` collects published facts."""

    def __init__(self, database: Database, connection: Any, client_id: str | None = "shop") -> None:
        self.database = database
        self.connection = connection
        self.client_id = client_id
        self.facts: list[BaseModel] = []
        self.messages = EndpointMessages(database)
        endpoints = Endpoints(database, CIPHER, limit=MAX_ENDPOINTS)
        self.replays = Replays(database, rate=REPLAY_RATE)
        sweeper = Sweeper(database, self.messages, self._publish)
        self.worker = EndpointWorker(sweeper, self.replays, lambda: None)
        slots = asyncio.Semaphore(4)
        self._handlers = {
            **EndpointRequests(
                endpoints,
                self.messages,
                slots,
                changed=self.worker.wake,
                replay_rate=REPLAY_RATE,
            ).handlers(),
            **EndpointMessageRequests(
                endpoints, self.messages, slots, added=lambda: None
            ).handlers(),
        }

    async def _publish(self, fact: BaseModel) -> None:
        self.facts.append(fact)

    def as_client(self, client_id: str | None) -> "EndpointsClient":
        """Return another client of the same service."""
        return EndpointsClient(self.database, self.connection, client_id)

    async def __call__(self, operation: str, /, request: str = "", **body: Any) -> Any:
        """Send a request. `request` is its id, which is the same if it is delivered again."""
        context = RequestContext(self.client_id, None, request or uuid7().hex)
        return await self._handlers[operation](context, json.dumps(body).encode())

    async def endpoint(self, *event_types: str, **fields: Any) -> UUID:
        """Create an endpoint, and return its id."""
        new = {"url": URL, "event_types": event_types or ("*",), **fields}
        response = await self("CreateEndpoint", endpoint=new)
        assert not isinstance(response, Failure), response
        id_: UUID = response.id
        return id_

    async def send(self, event_type: str = "invoice.paid", **fields: Any) -> Any:
        """Send a message, and return the response."""
        payload = fields.pop("payload", {"total": 1})
        return await self(
            "SendEndpointMessage", message={"event_type": event_type, "payload": payload, **fields}
        )

    async def control(self, operation: str, id_: UUID, **body: Any) -> Any:
        """Send a request about one endpoint, and do all the work that follows."""
        response = await self(operation, id=str(id_), **body)
        await self.work()
        return response

    async def work(self) -> None:
        """Sweep everything."""
        while not await self.worker.run_once():
            pass

    async def statuses(self, id_: UUID) -> list[str]:
        """Return the statuses of an endpoint's deliveries, the oldest first."""
        rows = await self.connection.fetch(
            "SELECT status FROM subscriptions.deliveries WHERE endpoint_id = $1 ORDER BY id", id_
        )
        return [row["status"] for row in rows]

    async def settle(self, id_: UUID, status: str) -> None:
        """Let all unfinished deliveries of an endpoint end with this status, as the engine does."""
        await self.connection.execute(
            "UPDATE subscriptions.deliveries SET status = $2, finished_at = now(), dispatch = 1"
            " WHERE endpoint_id = $1 AND finished_at IS NULL",
            id_,
            status,
        )


@asynccontextmanager
async def running_endpoints(database_url: str) -> AsyncIterator[EndpointsClient]:
    """Yield a client of the endpoints on an empty schema."""
    url = await empty_subscriptions(database_url)
    database = Database(url, name="test", health=Health(), schema=SCHEMA)
    task = asyncio.create_task(database.run())
    connection = await asyncpg.connect(url)
    await database.ready()
    try:
        yield EndpointsClient(database, connection)
    finally:
        await connection.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
