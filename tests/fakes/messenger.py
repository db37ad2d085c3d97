"""The messenger on a real database, without a broker."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from secrets import token_urlsafe
from typing import Any, Final

import asyncpg

from services.subscriptions.app import SCHEMA
from services.subscriptions.deliveries.store import add_user_events
from services.subscriptions.messenger.appending import Appender
from services.subscriptions.messenger.passwords import Passwords
from services.subscriptions.messenger.requests import MessengerRequests
from services.subscriptions.messenger.store import Messenger
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure
from shared.contracts.users import token_hash
from shared.ids import uuid7
from shared.postgres.migrations import migrate
from shared.postgres.pool import Database
from shared.process.health import Health

RUN_SUBSCRIPTIONS: Final = ("-m", "services", "run", "subscriptions", "--metrics-port", "0")
PASSWORD: Final = "correct horse"


class Users:
    """The requests of users, and the store behind them. `woken` collects ids of users."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.messenger = Messenger(database, add_user_events)
        self.appender = Appender(self.messenger, self._wake, batch=500)
        self.passwords = Passwords()
        self.woken: list[int] = []
        self._handlers = MessengerRequests(
            self.messenger,
            self.appender,
            self.passwords,
            self._wake,
            token_lifetime=timedelta(days=1),
        ).handlers()

    def _wake(self, user_ids: Collection[int]) -> None:
        self.woken += user_ids

    async def __call__(self, operation: str, /, message_id: str = "", **body: Any) -> Any:
        context = RequestContext(None, None, message_id or uuid7().hex)
        return await self._handlers[operation](context, json.dumps(body).encode())

    async def register(self, name: str) -> int:
        """Register a user, and return the id."""
        response = await self("RegisterUser", user={"name": name, "password": PASSWORD})
        assert not isinstance(response, Failure), response
        id_: int = response.user_id
        return id_

    async def sign_in(self, name: str) -> str:
        """Return the hash of a new token."""
        hashed = token_hash(token_urlsafe(32))
        response = await self("SignIn", name=name, password=PASSWORD, token_hash=hashed)
        assert not isinstance(response, Failure), response
        return hashed

    async def send(self, token: str, to_id: int, text: str = "hello", **options: Any) -> Any:
        """Send a message."""
        return await self("SendUserMessage", token_hash=token, to_id=to_id, text=text, **options)

    async def read(self, token: str, **options: Any) -> Any:
        """Read events."""
        return await self("ReadEvents", token_hash=token, **options)

    async def texts(self, token: str, **options: Any) -> list[str]:
        """Read events, and return the texts of these messages."""
        page = await self.read(token, **options)
        assert not isinstance(page, Failure), page
        return [json.loads(event.event)["text"] for event in page.events]


async def empty_subscriptions(database_url: str) -> str:
    """Bring the schema up to date, delete all rows, and return the URL."""
    await migrate(database_url, SCHEMA)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "TRUNCATE subscriptions.users, subscriptions.tokens, subscriptions.messages,"
            " subscriptions.user_events, subscriptions.endpoints, subscriptions.endpoint_messages,"
            " subscriptions.deliveries, subscriptions.attempts, subscriptions.replays"
        )
    finally:
        await connection.close()
    return database_url


@asynccontextmanager
async def running_users(database_url: str) -> AsyncIterator[Users]:
    """Yield the messenger on an empty schema."""
    database = Database(
        await empty_subscriptions(database_url), name="test", health=Health(), schema=SCHEMA
    )
    users = Users(database)
    tasks = [asyncio.create_task(part.run()) for part in (database, users.appender)]
    await database.ready()
    try:
        yield users
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        users.passwords.close()
