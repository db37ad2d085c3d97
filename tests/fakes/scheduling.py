"""The scheduler's parts on a real database, with a list instead of the broker."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel

from services.scheduler import metrics
from services.scheduler.app import SCHEMA
from services.scheduler.changes import ChangeWriter
from services.scheduler.clock import DatabaseClock
from services.scheduler.dispatch import Dispatcher
from services.scheduler.due_times import DueTimes
from services.scheduler.facts import FactPublisher
from services.scheduler.intake import Intake
from services.scheduler.notifications import NotificationPublisher
from services.scheduler.operations import Operations
from services.scheduler.partitions import Partitions
from services.scheduler.requests import Requests
from services.scheduler.settlement import Settler
from services.scheduler.store import Store
from shared.amqp.backpressure import CallbackQueue
from shared.amqp.codec import Properties
from shared.amqp.facts import batch_messages
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
from shared.contracts.journal_facts import JournalFacts
from shared.postgres.leases import LeaseExtender
from shared.postgres.migrations import migrate
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.security.encryption import SecretCipher
from shared.security.jwks import shared_key
from shared.security.tickets import TicketIssuer
from shared.skew import ClockSkew
from shared.topology import MAILINGS_STARTS

SECRETS_KEY = base64.b64encode(b"0123456789abcdef" * 2).decode()
TICKET_KEY = "a-ticket-key-of-32-characters-xx"
URL = "https://shop.example.com/hook"
ALLOWED_EXCHANGE = "reminders"


class ListBroker:
    """Keeps published messages. Refuses unknown exchanges, and everything while `refuses_all`."""

    def __init__(self) -> None:
        self.sent: list[OutgoingMessage] = []
        self.facts: list[dict[str, Any]] = []
        self.steps: list[Any] = []  # facts for the journal alone
        self.refuses_all = False
        self.queued = 0  # as if no consumer had received them
        self.confirms_facts = asyncio.Event()
        self.confirms_facts.set()
        self.exchanges = {"", ALLOWED_EXCHANGE, MAILINGS_STARTS}

    async def ready(self) -> None:
        """Return at once; the real publisher also notices a lost broker only when it publishes."""

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.refuses_all or message.exchange not in self.exchanges:
            done.set_exception(PublishRefusedError("the message reached no queue: NO_ROUTE"))
        else:
            self.sent.append(message)
            done.set_result(None)
        return done

    async def count(self) -> int:
        return self.queued

    async def send_confirmed(self, facts: Iterable[BaseModel]) -> None:
        await self.confirms_facts.wait()
        self.facts += [fact.model_dump(mode="json") for fact in facts]

    def send_batch(self, name: str, facts: Sequence[Mapping[str, object]]) -> None:
        """Keep facts as the journal reads them."""
        for message in batch_messages(name, facts):
            read = JournalFacts.model_validate_json(message.body).facts
            assert {fact.type for fact in read} == {name}
            self.steps += read

    def published_facts(self, kind: str) -> list[dict[str, Any]]:
        """Return the published facts of a type."""
        return [fact for fact in self.facts if fact["type"] == f"schedule.{kind}"]


class Scheduler:
    """A scheduler that the test moves step by step."""

    def __init__(
        self,
        database: Database,
        *,
        keys: str = SECRETS_KEY,
        ticket_header: str = "X-Service-Ticket",
        **settings: Any,
    ) -> None:
        given = {"lease": 60.0, "batch": 500, "poll": 2.0, "max_queued": 1000} | settings
        self.database = database
        self.store = Store(database)
        self.partitions = Partitions(database)
        self.broker = ListBroker()
        self.clock = DatabaseClock()
        self.cipher = SecretCipher.of(keys)
        self.issuer = TicketIssuer(shared_key(TICKET_KEY))
        broker: Any = self.broker
        facts, skew = FactPublisher(broker), ClockSkew(metrics.CLOCK_SKEW.set)
        self.changes = ChangeWriter(self.store, facts)
        self.leases = LeaseExtender(self.store.extend)
        queue = CallbackQueue(self.broker.count, given["max_queued"], metrics.BACKPRESSURE.set)
        self.dispatcher = Dispatcher(
            self.store,
            NotificationPublisher(
                broker, broker, self.cipher, self.issuer, skew, ticket_header=ticket_header
            ),
            self.changes,
            self.leases,
            self.clock,
            facts=facts,
            queue=queue,
            batch=given["batch"],
            poll=given["poll"],
        )
        self.intake = Intake(
            self.store,
            self.cipher,
            self.clock,
            facts=facts,
            queue=queue,
            dispatch=self.dispatcher.dispatch,
            wake_at=self.dispatcher.wake_at,
            batch=given["batch"],
            lease=given["lease"],
            # An operator can name an internal exchange by mistake.
            amqp_exchanges=(ALLOWED_EXCHANGE, MAILINGS_STARTS),
            max_message_bytes=1_048_576,
            ticket_header=ticket_header,
        )
        self.operations = Operations(
            self.store,
            self.changes,
            self.clock,
            self.dispatcher.wake_at,
            self.intake.changed,
            facts=facts,
        )
        self.settler = Settler(
            self.store,
            self.changes,
            facts,
            skew,
            wake_at=self.dispatcher.wake_at,
            wait_for_backlog=self.dispatcher.wait_for_backlog,
        )
        self.handlers = Requests(
            self.intake,
            self.operations,
            DueTimes(self.database, self.store, self.clock),
            fault=lambda: None,
            anonymous=True,
        ).handlers()

    async def request(self, operation: str, client: str | None = None, **body: Any) -> Any:
        """Send a request as the gateway does, and return the value or failure as JSON."""
        response = await self.handlers[operation](RequestContext(client), json.dumps(body).encode())
        return json.loads(response.model_dump_json())

    async def create(self, client: str | None = None, **fields: Any) -> UUID:
        """Create a callback; it is due in an hour unless the fields say otherwise."""
        due = {} if "run_at" in fields or "delay" in fields else {"delay": 3600}
        created = await self.request("CreateCallback", client, callback={"url": URL} | due | fields)
        return UUID(created["id"])

    async def status(self, callback: UUID, client: str | None = None) -> dict[str, Any]:
        status: dict[str, Any] = await self.request("GetCallback", client, id=str(callback))
        return status

    async def make_due(self, *callbacks: UUID) -> None:
        """Make callbacks due: their due time, next retry or end of lease has come."""
        await self.database.execute(
            "UPDATE scheduler.scheduled_callbacks SET next_at = now() - interval '1 ms'"
            " WHERE id = ANY($1)",
            list(callbacks),
        )

    async def age(self, callback: UUID, by: timedelta) -> None:
        """Change an unfinished callback as if so much time had passed."""
        await self.database.execute(
            # No further back than now: a scheduler seldom scans before its last claim.
            "UPDATE scheduler.scheduled_callbacks SET next_at ="
            " greatest(next_at - $2::interval, least(next_at, now() - interval '1 ms')),"
            " run_at = run_at - $2::interval, stop_at = stop_at - $2::interval WHERE id = $1",
            callback,
            by,
        )

    async def dispatch(self, limit: int = 500) -> list[dict[str, Any]]:
        """Dispatch all due callbacks, and return the published bodies."""
        before = len(self.broker.sent)
        while await self.dispatcher.run_once(limit) >= limit:
            pass
        await self.dispatcher.drain(10)
        return [json.loads(message.body) for message in self.broker.sent[before:]]

    async def settle(self, *facts: Fact) -> None:
        """Receive facts in one message."""
        await self.settler.handle(Message("m", Properties(), b""), Facts(facts=list(facts)))


def _fact_fields(callback: str, dispatch: int, attempt: int) -> dict[str, Any]:
    return {
        "fact_id": uuid4().hex,
        "at": datetime.now(UTC),
        "callback_id": callback,
        "client_id": None,
        "target": "https://shop.example.com:443",
        "attempt": attempt,
        "owner": "scheduler",
        "dispatch": dispatch,
    }


def delivered(callback: object, dispatch: int = 1, attempt: int = 1) -> CallbackDelivered:
    fields = _fact_fields(str(callback), dispatch, attempt)
    return CallbackDelivered(**fields, status=200, duration=0.1)


def attempt_failed(callback: object, dispatch: int = 1, attempt: int = 1) -> CallbackAttemptFailed:
    fields = _fact_fields(str(callback), dispatch, attempt)
    next_at = datetime.now(UTC) + timedelta(seconds=5)
    return CallbackAttemptFailed(**fields, error="the receiver responded with 500", next_at=next_at)


def dispatch_failed(
    callback: object, dispatch: int = 1, attempt: int = 6, *, final: bool = False
) -> CallbackDispatchFailed:
    fields = _fact_fields(str(callback), dispatch, attempt)
    return CallbackDispatchFailed(**fields, reason="the receiver responded with 500", final=final)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Database]:
    """Connect to the scheduler's schema, migrated and empty except for its partitions."""
    await migrate(url, SCHEMA)
    database = Database(url, name="test scheduler", health=Health(), schema=SCHEMA)
    running = asyncio.create_task(database.run())
    try:
        await asyncio.wait_for(database.ready(), 20)
        await database.execute(
            "TRUNCATE scheduler.scheduled_callbacks, scheduler.callback_requests,"
            " scheduler.finished_callbacks, scheduler.unpublished_facts"
        )
        await Partitions(database).create()
        yield database
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def schedulers(
    url: str, count: int = 1, **settings: Any
) -> AsyncIterator[Sequence[Scheduler]]:
    """Run the intake and the settler of `count` schedulers on one empty database."""
    async with connected(url) as database:
        created = [Scheduler(database, **settings) for _ in range(count)]
        async with running(*created):
            yield created


@asynccontextmanager
async def running(*schedulers: Scheduler) -> AsyncIterator[None]:
    """Run the intake and the settler of these schedulers."""
    tasks = [
        asyncio.create_task(loop)
        for each in schedulers
        for loop in (each.intake.run(), each.settler.run())
    ]
    for each in schedulers:
        started = each.clock.start()
        _, now = await each.store.next_due(1)
        each.clock.sync(now, started)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def finished(scheduler: Scheduler, status: str, **fields: Any) -> UUID:
    """Create a callback, and finish it with a status."""
    callback = await scheduler.create(**fields)
    if status == "cancelled":
        await scheduler.request("CancelCallbacks", id=str(callback))
        return callback
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    await scheduler.settle(
        delivered(callback) if status == "notified" else dispatch_failed(callback, final=True)
    )
    return callback


async def blocked(scheduler: Scheduler) -> bool:
    """Return whether a statement waits for a lock."""
    row = await scheduler.database.fetchrow("SELECT count(*) AS n FROM pg_locks WHERE NOT granted")
    return bool(row["n"])
