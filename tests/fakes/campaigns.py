"""Mailings at the level of requests: the parts of one process on a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from services.mailings.app import SCHEMA
from services.mailings.campaigns.partners import PartnerError
from services.mailings.campaigns.records import StoredMailing
from services.mailings.campaigns.requests import CampaignRequests
from services.mailings.campaigns.store import Campaigns
from services.mailings.campaigns.texts import Texts
from services.mailings.campaigns.worker import CampaignWorker
from services.mailings.clients.requests import ClientRequests
from services.mailings.clients.store import Directory
from services.mailings.rendering.loader import TemplateLoader
from services.mailings.store import Store
from shared.amqp.rpc import RequestContext
from shared.clock import SystemClock
from shared.contracts.mailing_requests import Mailing
from shared.contracts.mailings import MailingStatus
from shared.ids import uuid7
from shared.postgres.pool import Database
from shared.process.health import Health
from tests.fakes.mailing import FakeBroker, empty_mailings

OWNER = "shop"


class FakePartners:
    """The scheduler and delivery, which keep what is requested, or are unavailable."""

    def __init__(self) -> None:
        self.starts: list[tuple[UUID, datetime]] = []
        self.stops: list[tuple[UUID, int, str]] = []
        self.unavailable = False

    async def request_start(self, mailing: StoredMailing) -> None:
        self._check()
        self.starts.append((mailing.id, mailing.start_at))

    async def request_stop(self, mailing: StoredMailing) -> None:
        self._check()
        self.stops.append((mailing.id, mailing.stop_version, mailing.status))

    def _check(self) -> None:
        if self.unavailable:
            raise PartnerError("it is unavailable")


class CampaignProcess:
    """The requests about mailings and clients, and the parts behind them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.broker = FakeBroker()
        self.partners = FakePartners()
        self.campaigns = Campaigns(database)
        self.store = Store(database)
        self.starts = 0
        self.worker = CampaignWorker(
            self.campaigns,
            self.store,
            self.partners,  # type: ignore[arg-type]
            started=self._started,
        )
        requests = CampaignRequests(
            self.campaigns,
            Directory(database),
            self.worker,
            Texts(TemplateLoader(None), "Ringback"),
            self.broker,  # type: ignore[arg-type]
            clock=SystemClock(),
            started=self._started,
        )
        self._handlers = {
            **requests.handlers(),
            **ClientRequests(Directory(database)).handlers(),
        }

    def _started(self) -> None:
        self.starts += 1

    async def request(
        self, operation: str, owner: str | None = OWNER, /, message_id: str = "", **body: Any
    ) -> Any:
        """Handle a request, and return its response."""
        context = RequestContext(owner, None, message_id or uuid7().hex)
        return await self._handlers[operation](context, json.dumps(body).encode())

    async def create(self, **fields: Any) -> Mailing:
        """Create a mailing, and return it."""
        created = await self.request("CreateMailing", mailing=mailing(**fields))
        assert isinstance(created, Mailing), created
        return created

    async def get(self, id_: UUID) -> Mailing:
        """Return a mailing."""
        found = await self.request("GetMailing", id=str(id_))
        assert isinstance(found, Mailing), found
        return found

    async def add_clients(self, *zones: str, **fields: Any) -> None:
        """Add a client for each of these time zones."""
        for number, zone in enumerate(zones):
            client = {"phone": f"7916{number:07d}", "timezone": zone, **fields}
            await self.request("CreateClient", client=client)

    async def postings(self, id_: UUID) -> list[Any]:
        """Return the postings of a mailing, ordered by time zone."""
        return await self.database.fetch(
            "SELECT *, now() AS now, due_at <= now() AS is_due FROM mailings.postings"
            " WHERE mailing_id = $1 ORDER BY timezone",
            id_,
        )

    async def move(self, id_: UUID, *, start_at: datetime, end_at: datetime | None = None) -> None:
        """Set the start and the end of a mailing, as if time had passed."""
        await self.database.execute(
            "UPDATE mailings.mailings SET start_at = $2, end_at = coalesce($3, end_at),"
            " start_requested_at = start_requested_at + ($2 - start_at) WHERE id = $1",
            id_,
            start_at,
            end_at,
        )


def soon(seconds: float) -> str:
    """Return a time this many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def mailing(**fields: Any) -> dict[str, Any]:
    """Make a mailing that starts at once."""
    return {"text": "Hello", "end_at": soon(3600), **fields}


@asynccontextmanager
async def running_campaigns(database_url: str) -> AsyncIterator[CampaignProcess]:
    """Run the parts on an empty database."""
    database = Database(
        await empty_mailings(database_url), name="test", health=Health(), schema=SCHEMA
    )
    process = CampaignProcess(database)
    tasks = [asyncio.create_task(part.run()) for part in (database, process.store)]
    await database.ready()
    try:
        yield process
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_status(process: CampaignProcess, status: MailingStatus) -> Mailing:
    """Create a mailing, and bring it into a status."""
    fields: dict[str, Any] = {}
    if status is MailingStatus.DRAFT:
        fields["draft"] = True
    if status is MailingStatus.SCHEDULED:
        fields["start_at"] = soon(600)
    created = await process.create(**fields)
    if status is MailingStatus.PAUSED:
        await process.request("PauseMailing", id=str(created.id))
    if status is MailingStatus.CANCELLED:
        await process.request("CancelMailing", id=str(created.id))
    if status is MailingStatus.FINISHED:
        for posting in await process.postings(created.id):
            await process.database.execute(
                "UPDATE mailings.postings SET ended = 'expanded', ended_at = now() WHERE id = $1",
                posting["id"],
            )
        await process.worker.attend(created.id)
    found = await process.get(created.id)
    assert found.status is status
    return found


async def add_messages(process: CampaignProcess, created: Mailing, count: int) -> None:
    """Add messages to each posting of a mailing, as expansion does."""
    for posting in await process.postings(created.id):
        await process.database.execute(
            "INSERT INTO mailings.messages"
            " (posting_id, id, user_id, operator_code, channel, status, page)"
            " SELECT $1, unnest($2::uuid[]), unnest($3::text[]), '916', 'sms', 'created', 0",
            posting["id"],
            [uuid4() for _ in range(count)],
            [f"client-{number}" for number in range(count)],
        )
        await process.database.execute(
            "UPDATE mailings.postings SET created = $2 WHERE id = $1", posting["id"], count
        )
