"""Mailings for the gateway's tests: answers requests about postings from the contract models.

It keeps postings by client id, in memory; what it can't know (progress) is set by the test.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from pydantic import BaseModel, ValidationError

from shared.amqp.request_reply import Asker, Responder
from shared.contracts.context import field_errors
from shared.contracts.posting_requests import (
    CreatePosting,
    GetPosting,
    ListPostingMessages,
    MessageState,
    Operation,
    PostingAccepted,
    PostingMessage,
    PostingMessages,
    PostingState,
    PostingStatus,
)
from shared.contracts.requests import Failure, FailureCode
from shared.process.health import Health
from shared.topology import MAILINGS_REQUESTS, topology
from tests.fakes.waiting import until

AT = datetime(2026, 11, 20, 15, tzinfo=UTC)


class FakeMailings:
    """What it was asked, and the postings it keeps: by client id, then by id.

    `messages` are those of every posting. `silent`: it gives no answer.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, bytes]] = []
        self.kept: dict[str | None, dict[UUID, CreatePosting]] = {}
        self.progress: dict[str, Any] = {}
        self.messages: list[PostingMessage] = []
        self.silent = False

    async def create(self, asker: Asker, body: bytes) -> BaseModel:
        """Take one in."""
        client_id = asker.client_id
        self.asked.append((Operation.CREATE, client_id, body))
        if self.silent:
            await asyncio.Event().wait()
        try:
            asked = CreatePosting.model_validate_json(body)
        except ValidationError as error:
            return _invalid(error)
        mine = self.kept.setdefault(client_id, {})
        key = asked.idempotency_key
        identity = uuid5(NAMESPACE_URL, f"{client_id} {key}") if key else uuid4()
        if mine.setdefault(identity, asked) != asked:
            return Failure(code=FailureCode.CONFLICT, detail="the Idempotency-Key is in use")
        return PostingAccepted(id=identity, status=PostingState.ACCEPTED)

    async def get(self, asker: Asker, body: bytes) -> BaseModel:
        """Tell how far one is."""
        client_id = asker.client_id
        self.asked.append((Operation.GET, client_id, body))
        asked = GetPosting.model_validate_json(body)
        kept = self.kept.get(client_id, {}).get(asked.id)
        if kept is None:
            return _not_found()
        status: dict[str, Any] = {
            "id": asked.id,
            "status": PostingState.ACCEPTED,
            "reason": None,
            "from_event": kept.posting.from_event,
            "template": kept.posting.template,
            "delivery_type": kept.posting.delivery_type,
            "accepted_at": AT,
            "expires_at": None,
            "pages": 0,
            "receivers": 0,
            "messages": dict.fromkeys(MessageState, 0),
            "skipped": {},
        }
        return PostingStatus(**status | self.progress)

    async def list(self, asker: Asker, body: bytes) -> BaseModel:
        """Tell of its messages."""
        client_id = asker.client_id
        self.asked.append((Operation.MESSAGES, client_id, body))
        try:
            asked = ListPostingMessages.model_validate_json(body)
        except ValidationError as error:
            return _invalid(error)
        if asked.id not in self.kept.get(client_id, {}):
            return _not_found()
        found = [m for m in self.messages if asked.status in (None, m.status)]
        start = int(asked.cursor or 0)
        end = start + asked.limit
        more = str(end) if end < len(found) else None
        return PostingMessages(items=found[start:end], next_cursor=more)


def _invalid(error: ValidationError) -> Failure:
    errors = field_errors(error, within="posting")
    return Failure(code=FailureCode.INVALID, detail="wrong", errors=errors)


def _not_found() -> Failure:
    return Failure(code=FailureCode.NOT_FOUND, detail="there is no such posting")


@asynccontextmanager
async def fake_mailings(amqp_url: str) -> AsyncIterator[FakeMailings]:
    """Answer requests for the length of the block."""
    mailings, health = FakeMailings(), Health()
    responder = Responder(
        MAILINGS_REQUESTS,
        {
            Operation.CREATE: mailings.create,
            Operation.GET: mailings.get,
            Operation.MESSAGES: mailings.list,
        },
        url=amqp_url,
        name="fake mailings",
        topology=topology().only((MAILINGS_REQUESTS,)),
        prefetch=10,
        health=health,
    )
    task = asyncio.create_task(responder.run())
    try:
        await until(lambda: task.done() or health.ready)
        yield mailings
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def mailings_aside(amqp_url: str) -> Iterator[None]:
    """The same in a thread of its own, for tests that have no event loop."""
    up, over = Event(), Event()

    async def answer() -> None:
        async with fake_mailings(amqp_url):
            up.set()
            await asyncio.to_thread(over.wait)

    thread = Thread(target=lambda: asyncio.run(answer()), daemon=True)
    thread.start()
    try:
        assert up.wait(20)
        yield
    finally:
        over.set()
        thread.join(20)
