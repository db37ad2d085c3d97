"""The parts of mailings on a real database with a fake broker, and a server of user lists."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from aiohttp import web

from services.mailings.app import SCHEMA
from services.mailings.clients.store import Directory
from services.mailings.domain import message_id
from services.mailings.expansion.publisher import ThrottledPublisher
from services.mailings.expansion.sources import ANYWHERE, Sources
from services.mailings.expansion.worker import ExpansionWorker
from services.mailings.handlers import Handler
from services.mailings.intake import Intake
from services.mailings.requests import Requests
from services.mailings.settings import MailingsSettings
from services.mailings.settlement import Settler
from services.mailings.store import Store
from services.mailings.unsubscribe import Unsubscribe
from shared.amqp.codec import Properties
from shared.amqp.message import Message
from shared.amqp.publisher import OutgoingMessage, PublishRefusedError
from shared.contracts.message_facts import MessageFacts
from shared.contracts.posting_requests import PostingStatus
from shared.contracts.postings import Posting
from shared.http.client import Client
from shared.postgres.migrations import migrate
from shared.postgres.pool import Database
from shared.process.health import Health

RUN_MAILINGS = ("-m", "services", "run", "mailings", "--metrics-port", "0")
SOURCES = "RINGBACK_SOURCES"


def user(number: int, **fields: Any) -> dict[str, Any]:
    """Make a user who has enabled every message."""
    return {
        "id": f"user-{number}",
        "name": f"User {number}",
        "email": f"user{number}@example.com",
        "phone": f"7900{number:07d}",
        "timezone": "Europe/Moscow",
        "is_active": True,
        "email_notifications": True,
        "sms_notifications": True,
        "notifications": {},
        **fields,
    }


def posting(**fields: Any) -> dict[str, Any]:
    """Make a posting that sends an e-mail to the list `all`."""
    return {
        "from_event": "event-1",
        "receivers": "http://auth/lists/all/",
        "template": "email/welcome.md",
        "delivery_type": ["email"],
        "template_context": {"username": "ann@example.com"},
        **fields,
    }


class UserLists:
    """Serves paged user lists by name, or the response for a name and page in `responses`."""

    def __init__(self) -> None:
        self.url = ""
        self.users: dict[str, list[Any]] = {}
        self.responses: dict[tuple[str, int], Callable[[], Any]] = {}
        self.requests: list[tuple[str, int]] = []
        self.authorizations: list[str | None] = []

    async def page(self, request: web.Request) -> web.Response:
        """Respond with a page."""
        name = request.match_info["name"]
        number = int(request.query.get("page_number", "1"))
        size = int(request.query.get("page_size", "500"))
        self.requests.append((name, number))
        self.authorizations.append(request.headers.get("Authorization"))
        response = self.responses.get((name, number)) or self.responses.get((name, 0))
        if response is not None:
            value = response()
            if asyncio.iscoroutine(value):
                value = await value
            return value if isinstance(value, web.Response) else web.json_response(value)
        start = (number - 1) * size
        return web.json_response(self.users[name][start : start + size])


@asynccontextmanager
async def user_lists() -> AsyncIterator[UserLists]:
    """Serve user lists for the duration of the block."""
    server = UserLists()
    app = web.Application()
    app.router.add_get("/lists/{name}/", server.page)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


class FakeBroker:
    """Keeps what is published, or refuses it while `refuses_all`. The queues in `full` are full."""

    def __init__(self) -> None:
        self.sent: list[OutgoingMessage] = []
        self.refuses_all = False
        self.refused = 0
        self.full: set[str] = set()

    async def ready(self) -> None:
        """Return at once, as a connected publisher does."""

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.refuses_all:
            self.refused += 1
            done.set_exception(PublishRefusedError("a queue is full"))
        else:
            self.sent.append(message)
            done.set_result(None)
        return done

    async def is_full(self, queue: str) -> bool:
        """Return whether a queue is full."""
        return queue in self.full

    def bodies(self, posting_id: UUID) -> list[dict[str, Any]]:
        """Return the bodies published for a posting, in order."""
        return [body for body in self.sent_bodies() if body["posting_id"] == str(posting_id)]

    def sent_bodies(self) -> list[dict[str, Any]]:
        """Return all published bodies, in order."""
        return [json.loads(each.body) for each in self.sent]

    def ids(self, posting_id: UUID) -> Counter[str]:
        """Count how often each message of a posting was published."""
        return Counter(body["id"] for body in self.bodies(posting_id))


class Clock:
    """The system clock, moved forward by `ahead` seconds."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        return time.time() + self.offset

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self.offset


class Mailings:
    """The parts of one mailings process, driven step by step."""

    def __init__(
        self,
        database: Database,
        client: Client,
        sources: dict[str, str],
        broker: FakeBroker,
        store: type[Store] = Store,
        **settings: Any,
    ) -> None:
        self.store = store(database)
        self.directory = Directory(database)
        self.broker = broker
        self.clock = Clock()
        self.database = database
        mailings_settings = MailingsSettings(sources=sources, **settings)
        self.templates = mailings_settings.templates()
        unsubscribe = Unsubscribe(mailings_settings.unsubscribe_url, [b"k" * 32])
        self.expansion = ExpansionWorker(
            self.store,
            Sources(client, sources, mailings_settings.credentials),
            self.directory,
            self.templates,
            ThrottledPublisher(broker, broker, self.clock),  # type: ignore[arg-type]
            clock=self.clock,
            settings=mailings_settings,
            unsubscribe=unsubscribe,
        )
        self.intake = Intake(self.store, self.expansion.wake)
        self.settler = Settler(self.store)
        self.requests = Requests(
            self.intake, self.store, self.templates, unsubscribe, self.clock
        ).handlers()

    async def post(self, body: dict[str, Any], **properties: Any) -> UUID:
        """Accept a posting as the consumer does, and return its id."""
        id_ = str(properties.pop("id", uuid4()))
        model = Posting.model_validate(body)
        message = Message(id_, Properties(type="Posting", **properties), b"")
        await Handler(self.intake, self.templates, self.clock).handle(message, model)
        return UUID(id_)

    async def expand(self, posting_id: UUID, *, slices: int = 1000) -> PostingStatus:
        """Run slices of all postings until this one is expanded, and return its status."""
        for _ in range(slices):
            await self.expansion.run_once(4)
            status = await self.status(posting_id)
            if status.status not in ("accepted", "expanding"):
                break
        return await self.status(posting_id)

    async def expand_all(self) -> None:
        """Run slices until none is due."""
        while await self.expansion.run_once(4):
            pass

    async def status(self, posting_id: UUID) -> PostingStatus:
        """Return the status of a posting."""
        status = await self.store.status(posting_id, None)
        assert status is not None
        return status

    async def settle(self, *facts: dict[str, Any]) -> None:
        """Settle facts."""
        model = MessageFacts.model_validate({"facts": list(facts)})
        await self.settler.handle(Message("", Properties(type="Facts"), b""), model)

    async def make_due(self, posting_id: UUID) -> None:
        """Make a posting due, as if its lease had expired."""
        await self.database.execute(
            "UPDATE mailings.postings SET due_at = now() WHERE id = $1", posting_id
        )


def counts(status: PostingStatus) -> Counter[str]:
    """Count the messages of a posting by state, without zero counts."""
    return Counter({state.value: count for state, count in status.messages.items() if count})


async def empty_mailings(database_url: str) -> str:
    """Migrate a database, delete the data of mailings, and return its URL."""
    await migrate(database_url, SCHEMA)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "TRUNCATE mailings.postings, mailings.messages, mailings.unsubscribed, mailings.clients,"
        " mailings.mailings, mailings.statistics"
    )
    await connection.close()
    return database_url


def fact(
    posting_id: UUID, number: int, kind: str = "sent", channel: str = "email"
) -> dict[str, Any]:
    """Make a fact about the message to a user."""
    fields: dict[str, Any] = {"duration": 0.1} if kind == "sent" else {"reason": f"it {kind}"}
    return {
        "type": f"message.{kind}",
        "fact_id": uuid4().hex,
        "at": "2026-11-20T15:00:00Z",
        "message_id": str(message_id(posting_id, channel, f"user-{number}")),
        "posting_id": str(posting_id),
        "channel": channel,
        "attempt": 1,
        **fields,
    }


@asynccontextmanager
async def running_mailings(
    database_url: str,
    sources: dict[str, str],
    *,
    broker: FakeBroker | None = None,
    store: type[Store] = Store,
    **settings: Any,
) -> AsyncIterator[Mailings]:
    """Run the parts of mailings on a migrated database."""
    database = Database(database_url, name="test", health=Health(), schema=SCHEMA)
    async with Client(ANYWHERE, user_agent="test") as client:
        mailings = Mailings(database, client, sources, broker or FakeBroker(), store, **settings)
        tasks = [
            asyncio.create_task(part.run())
            for part in (database, mailings.store, mailings.intake, mailings.settler)
        ]
        await database.ready()
        try:
            yield mailings
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def is_enabled(user: dict[str, object]) -> bool:
    """Return whether a user has enabled the e-mail, decided independently of the product."""
    valid_zone = (
        user["timezone"] is None or "/" in str(user["timezone"]) or user["timezone"] == "UTC"
    )
    return bool(
        user["is_active"]
        and user["email_notifications"]
        and user["email"]
        and valid_zone
        and user["timezone"] != "Mars/Olympus_Mons"
    )
