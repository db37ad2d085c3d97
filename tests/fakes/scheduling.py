"""The scheduler's own parts on a real database, with the broker played by a list."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from services.scheduler.app import SCHEMA
from services.scheduler.clock import DatabaseClock
from services.scheduler.dispatch import Dispatcher
from services.scheduler.facts import FactPublisher
from services.scheduler.intake import Intake
from services.scheduler.notifications import NotificationPublisher
from services.scheduler.operations import Operations
from services.scheduler.requests import Requests
from services.scheduler.settlement import Settler
from services.scheduler.store import Store
from shared.amqp.codec import Properties
from shared.amqp.message import Message
from shared.amqp.publisher import OutgoingMessage, PublishRefusedError
from shared.amqp.rpc import RequestContext
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDelivered,
    CallbackDispatchFailed,
    Fact,
    Facts,
)
from shared.postgres.migrations import migrate
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.security.encryption import SecretCipher
from shared.security.tickets import Tickets

SECRETS_KEY = base64.b64encode(b"0123456789abcdef" * 2).decode()
TICKET_KEY = "a-ticket-key-of-32-characters-xx"
URL = "https://shop.example.com/hook"
ALLOWED = "reminders"


class ListBroker:
    """Takes what is published; refuses exchanges that are not there, all of it while `down`."""

    def __init__(self) -> None:
        self.sent: list[OutgoingMessage] = []
        self.facts: list[dict[str, Any]] = []
        self.down = False
        self.exchanges = {"", ALLOWED}

    async def ready(self) -> None:
        """Say that publishing is possible, as the real one believes until it fails."""

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.down or message.exchange not in self.exchanges:
            done.set_exception(PublishRefusedError("the message reached no queue: NO_ROUTE"))
        else:
            self.sent.append(message)
            done.set_result(None)
        return done

    async def publish_all(self, messages: Iterable[OutgoingMessage]) -> None:
        for message in messages:
            self.facts += json.loads(message.body)["facts"]

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Give the facts of a type that were published."""
        return [fact for fact in self.facts if fact["type"] == f"schedule.{kind}"]


class Scheduler:
    """One scheduler, moved step by step."""

    def __init__(self, database: Database, **settings: Any) -> None:
        given = {"lease": 60.0, "batch": 500, "poll": 2.0} | settings
        self.database = database
        self.store = Store(database)
        self.broker = ListBroker()
        self.clock = DatabaseClock()
        self.seal = SecretCipher.of(SECRETS_KEY)
        self.tickets = Tickets(TICKET_KEY)
        published: Any = self.broker
        announcer = FactPublisher(published)
        self.dispatcher = Dispatcher(
            self.store,
            NotificationPublisher(published, published, self.seal, self.tickets),
            announcer,
            self.clock,
            batch=given["batch"],
            poll=given["poll"],
        )
        self.intake = Intake(
            self.store,
            self.seal,
            self.clock,
            fire=self.dispatcher.fire,
            wake=self.dispatcher.soon,
            batch=given["batch"],
            lease=given["lease"],
            amqp_exchanges=(ALLOWED,),
        )
        self.operations = Operations(self.store, announcer, self.clock, self.dispatcher.soon)
        self.settler = Settler(self.store, announcer, self.dispatcher.soon, self.dispatcher.calm)
        self.handlers = Requests(
            self.intake, self.operations, fault=lambda: None, anonymous=True
        ).handlers()

    async def ask(self, operation: str, client: str | None = None, **body: Any) -> Any:
        """Ask as the gateway does: JSON in, JSON out, of a value or a failure."""
        answer = await self.handlers[operation](RequestContext(client), json.dumps(body).encode())
        return json.loads(answer.model_dump_json())

    async def create(self, client: str | None = None, **fields: Any) -> UUID:
        """Create an event, which must succeed; in an hour unless said otherwise."""
        when = {} if "run_at" in fields or "delay" in fields else {"delay": 3600}
        answer = await self.ask("CreateCallback", client, callback={"url": URL} | when | fields)
        return UUID(answer["id"])

    async def status(self, event_id: UUID, client: str | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = await self.ask("GetCallback", client, id=str(event_id))
        return answer

    async def come(self, *ids: UUID) -> None:
        """Let the moment come that these events wait for: due, next retry, end of the lease."""
        await self.database.execute(
            "UPDATE scheduler.events SET next_at = now() - interval '1 ms' WHERE id = ANY($1)",
            list(ids),
        )

    async def age(self, event_id: UUID, by: timedelta) -> None:
        """Let a live event be as it will be so much later."""
        await self.database.execute(
            # No further back than now: a scheduler seldom looks below what it claimed last.
            "UPDATE scheduler.events SET next_at ="
            " greatest(next_at - $2::interval, least(next_at, now() - interval '1 ms')),"
            " run_at = run_at - $2::interval, stop_at = stop_at - $2::interval WHERE id = $1",
            event_id,
            by,
        )

    async def fire(self, limit: int = 500) -> list[dict[str, Any]]:
        """Fire all that is due, and give the bodies that went out."""
        before = len(self.broker.sent)
        while await self.dispatcher.run_once(limit) == limit:
            pass
        await self.dispatcher.drain(10)
        return [json.loads(message.body) for message in self.broker.sent[before:]]

    async def hear(self, *facts: Fact) -> None:
        """Take facts in, as one message."""
        await self.settler.handle(Message("m", Properties(), b""), Facts(facts=list(facts)))


def _told(event: str, dispatch: int, attempt: int) -> dict[str, Any]:
    return {
        "fact_id": uuid4().hex,
        "at": datetime.now(UTC),
        "callback_id": event,
        "client_id": None,
        "target": "https://shop.example.com:443",
        "attempt": attempt,
        "owner": "scheduler",
        "dispatch": dispatch,
    }


def delivered(event: object, dispatch: int = 1, attempt: int = 1) -> CallbackDelivered:
    return CallbackDelivered(**_told(str(event), dispatch, attempt), status=200, duration=0.1)


def attempt_failed(event: object, dispatch: int = 1, attempt: int = 1) -> CallbackAttemptFailed:
    at = datetime.now(UTC) + timedelta(seconds=5)
    return CallbackAttemptFailed(
        **_told(str(event), dispatch, attempt), error="the receiver answered 500", next_at=at
    )


def given_back(
    event: object, dispatch: int = 1, attempt: int = 6, *, final: bool = False
) -> CallbackDispatchFailed:
    return CallbackDispatchFailed(
        **_told(str(event), dispatch, attempt), reason="the receiver answered 500", final=final
    )


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Database]:
    """A pool on the scheduler's schema, up to date and empty but for its partitions."""
    await migrate(url, SCHEMA)
    database = Database(url, name="test scheduler", health=Health(), schema=SCHEMA)
    keeping = asyncio.create_task(database.run())
    try:
        await asyncio.wait_for(database.ready(), 20)
        await database.execute("TRUNCATE scheduler.events, scheduler.orders, scheduler.history")
        await Store(database).make_partitions()
        yield database
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


@asynccontextmanager
async def schedulers(
    url: str, count: int = 1, **settings: Any
) -> AsyncIterator[Sequence[Scheduler]]:
    """Schedulers on one empty database, whose loops of intake and settlement run."""
    async with connected(url) as database:
        made = [Scheduler(database, **settings) for _ in range(count)]
        tasks = [
            asyncio.create_task(loop)
            for each in made
            for loop in (each.intake.run(), each.settler.run())
        ]
        for each in made:
            each.clock.hear(await each.store.now(), each.clock.sent())
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def ended(it: Scheduler, how: str, **fields: Any) -> UUID:
    """Create an event that has ended."""
    event = await it.create(**fields)
    if how == "cancelled":
        await it.ask("CancelCallbacks", id=str(event))
        return event
    await it.come(event)
    await it.fire()
    await it.hear(delivered(event) if how == "notified" else given_back(event, final=True))
    return event
