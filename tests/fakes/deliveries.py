"""The engine of deliveries on a real database, moved step by step, without a broker."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from services.subscriptions import metrics
from services.subscriptions.deliveries.claims import Claims, Lease
from services.subscriptions.deliveries.dispatch import Dispatcher
from services.subscriptions.deliveries.messages import Destination
from services.subscriptions.deliveries.registrations import Registrations
from services.subscriptions.deliveries.requests import RegistrationRequests
from services.subscriptions.deliveries.settlement import Settler
from services.subscriptions.deliveries.store import NewDelivery, add
from shared.amqp.backpressure import CallbackQueue
from shared.amqp.publisher import OutgoingMessage
from shared.amqp.rpc import RequestContext
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDelivered,
    CallbackDispatchFailed,
    Fact,
    Facts,
)
from shared.http.guard import parse_target
from shared.ids import uuid7
from shared.postgres.leases import LeaseExtender
from shared.postgres.pool import Database
from shared.security.encryption import SecretCipher
from shared.skew import ClockSkew
from tests.fakes.messenger import Users, running_users
from tests.fakes.scheduling import ListBroker
from tests.fakes.system import SECRETS_KEY

DISABLE_AFTER = 3600.0
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Engine:
    """One process. Others may work on the same database."""

    def __init__(self, database: Database, users: Users, keys: str = SECRETS_KEY) -> None:
        self.database = database
        self.users = users
        self.cipher = SecretCipher.of(keys)
        self.broker = ListBroker()
        self.disabled: list[UUID] = []
        self.claims = Claims(
            database, self.cipher, disable_after=DISABLE_AFTER, disabled=self._disable
        )
        self.skew = ClockSkew(metrics.CLOCK_SKEW.set)
        self.wake = asyncio.Event()
        self.settler = Settler(self.claims, self.skew, self.wake.set)
        self.leases: LeaseExtender[Lease] = LeaseExtender(self.claims.extend)
        self.dispatcher = Dispatcher(
            self.claims,
            self.broker,  # type: ignore[arg-type]
            self.cipher,
            self.settler,
            self.leases,
            CallbackQueue(self.broker.count, 1000, metrics.DELIVERY_BACKPRESSURE.set),
            self.skew,
            self.wake,
        )
        self._handlers = RegistrationRequests(
            Registrations(database, self.cipher), self.wake.set
        ).handlers()

    async def _disable(self, _: Any, endpoint_ids: Sequence[UUID]) -> None:
        self.disabled += endpoint_ids

    async def __call__(self, operation: str, /, message_id: str = "", **body: Any) -> Any:
        context = RequestContext(None, None, message_id or uuid7().hex)
        return await self._handlers[operation](context, json.dumps(body).encode())

    async def start(self, token: str, callback: str, **options: Any) -> Any:
        """Register the callback of a user."""
        message_id = options.pop("message_id", "")
        return await self(
            "StartCallback",
            message_id,
            token_hash=token,
            registration={"callback": callback, **options},
        )

    async def endpoint(self, url: str, **fields: Any) -> UUID:
        """Insert a customer's endpoint, and return its id."""
        values = {
            "id": uuid7(),
            "client_id": "shop",
            "url": self.cipher.encrypt(url.encode()),
            "secret": self.cipher.encrypt(SECRET.encode()),
            **fields,
        }
        places = ", ".join(f"${index + 1}" for index in range(len(values)))
        sql = f"INSERT INTO subscriptions.endpoints ({', '.join(values)}) VALUES ({places})"  # noqa: S608 - fixed
        await self.database.execute(sql, *values.values())
        id_: UUID = values["id"]
        return id_

    async def add(self, *deliveries: NewDelivery) -> None:
        """Add deliveries."""
        async with self.database.transaction() as connection:
            await add(connection, deliveries)

    async def dispatch(self) -> list["Sent"]:
        """Dispatch what is due, and return what was published."""
        before = len(self.broker.sent)
        await self.dispatcher.run_once(500)
        return [Sent(message) for message in self.broker.sent[before:]]

    async def settle(self, *facts: Fact) -> None:
        """Settle facts, as a message of the callback service."""
        await self.settler.handle(None, Facts(facts=list(facts)))  # type: ignore[arg-type]

    async def rows(self) -> list[dict[str, Any]]:
        """Return all deliveries in their order."""
        rows = await self.database.fetch("SELECT * FROM subscriptions.deliveries ORDER BY id")
        return [dict(row) for row in rows]

    async def statuses(self) -> list[str]:
        """Return the statuses of all deliveries in their order."""
        return [row["status"] for row in await self.rows()]

    async def expire_leases(self) -> None:
        """Make everything due that waits for its time."""
        await self.database.execute(
            "UPDATE subscriptions.deliveries SET due_at = now()"
            " WHERE status IN ('pending', 'dispatched')"
        )


class Sent:
    """A published SendCallback, and the facts that a callback service can publish about it."""

    def __init__(self, message: OutgoingMessage) -> None:
        self.headers = dict(message.properties.headers or {})
        self.body: dict[str, Any] = json.loads(message.body)
        self.url: str = self.body["target_url"]
        self.payload: Any = self.body["payload"]

    def _fact(self, attempt: int) -> dict[str, Any]:
        return {
            "fact_id": uuid7().hex,
            "at": datetime.now(UTC),
            "callback_id": self.body["id"],
            "client_id": None,
            "target": parse_target(self.url).origin,
            "attempt": attempt,
            "owner": self.headers["x-ringback-owner"],
            "dispatch": self.headers["x-ringback-dispatch"],
            "reference": self.headers["x-ringback-reference"],
        }

    def delivered(self, attempt: int = 1) -> CallbackDelivered:
        """Return the fact that it was delivered."""
        return CallbackDelivered(**self._fact(attempt), status=200, duration=0.1)

    def attempt_failed(self, attempt: int = 1) -> CallbackAttemptFailed:
        """Return the fact that an attempt failed, and another follows."""
        return CallbackAttemptFailed(
            **self._fact(attempt),
            error="no",
            status=500,
            duration=0.2,
            next_at=datetime.now(UTC),
        )

    def failed(self, attempt: int = 4, **fields: Any) -> CallbackDispatchFailed:
        """Return the fact that the dispatch failed."""
        given = {"reason": "no", "status": 500, "duration": 0.3, "final": False} | fields
        return CallbackDispatchFailed(**self._fact(attempt), **given)


def old_destination(url: str, cipher: SecretCipher) -> bytes:
    """Return the stored form of a URL that was replaced."""
    return Destination(url, [SECRET]).encrypted(cipher)


@asynccontextmanager
async def running_engine(database_url: str) -> AsyncIterator[Engine]:
    """Yield an engine on an empty schema, and the messenger beside it."""
    async with running_users(database_url) as users:
        engine = Engine(users.database, users)
        settling = asyncio.create_task(engine.settler.run())
        try:
            yield engine
        finally:
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)
