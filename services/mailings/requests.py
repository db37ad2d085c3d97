"""The requests on the queue `mailings.requests`: from bodies to answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel, ValidationError

from services.mailings.domain import posting_of_key
from services.mailings.intake import Intake, OtherOrder, order
from services.mailings.store import Store
from shared.amqp.request_reply import Asker
from shared.clock import Clock
from shared.contracts.context import field_errors
from shared.contracts.posting_requests import (
    CreatePosting,
    GetPosting,
    ListPostingMessages,
    ListPostings,
    Operation,
    PostingMessages,
    PostingProgress,
    Postings,
)
from shared.contracts.requests import Failure, FailureCode, FieldError

B = TypeVar("B", bound=BaseModel)
Answer = BaseModel | Failure
Handler = Callable[[Asker, bytes], Awaitable[Answer]]

# Requests that use a connection to the database at a time.
SIDE_BY_SIDE: Final = 2
NO_POSTING: Final = Failure(code=FailureCode.NOT_FOUND, detail="there is no such posting")
OTHER_ORDER: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="another posting was created under this idempotency key",
)

_NO_CURSOR: Final = FieldError(field="cursor", message="is none that an answer held")
NO_CURSOR: Final = Failure(
    code=FailureCode.INVALID, detail=f"cursor: {_NO_CURSOR.message}", errors=(_NO_CURSOR,)
)
# After every posting.
_THE_END: Final = (datetime.max.replace(tzinfo=UTC), UUID(int=(1 << 128) - 1))


class Requests:
    """Answers requests. A posting of a client is seen by that client, any other by everybody."""

    def __init__(self, intake: Intake, store: Store, clock: Clock) -> None:
        self._intake = intake
        self._store = store
        self._clock = clock
        self._places = asyncio.Semaphore(SIDE_BY_SIDE)

    def handlers(self) -> Mapping[str, Handler]:
        """What answers each operation."""
        return {
            Operation.CREATE: _bound(CreatePosting, self._create, within="posting"),
            Operation.GET: _bound(GetPosting, self._get),
            Operation.LIST: _bound(ListPostings, self._list),
            Operation.MESSAGES: _bound(ListPostingMessages, self._messages),
        }

    async def _create(self, asker: Asker, asked: CreatePosting) -> Answer:
        key = asked.idempotency_key
        id_ = uuid4() if key is None else posting_of_key(asker.client_id, key)
        taken = await self._intake.take(
            order(
                id_,
                asked.posting,
                at=self._clock.now(),
                client_id=asker.client_id,
                traceparent=asker.traceparent,
            )
        )
        return OTHER_ORDER if isinstance(taken, OtherOrder) else taken

    async def _get(self, asker: Asker, asked: GetPosting) -> Answer:
        async with self._places:
            return await self._store.status(asked.id, asker.client_id) or NO_POSTING

    async def _list(self, asker: Asker, asked: ListPostings) -> Answer:
        before = _before(asked.cursor)
        if before is None:
            return NO_CURSOR
        async with self._places:
            found = await self._store.postings(
                asker.client_id, asked.from_event, before, asked.limit + 1
            )
        items = found[: asked.limit]
        more = len(found) > asked.limit
        return Postings(items=items, next_cursor=_cursor(items[-1]) if more else None)

    async def _messages(self, asker: Asker, asked: ListPostingMessages) -> Answer:
        try:
            after = UUID(asked.cursor) if asked.cursor else UUID(int=0)
        except ValueError:
            return NO_CURSOR
        async with self._places:
            if not await self._store.known(asked.id, asker.client_id):
                return NO_POSTING
            found = await self._store.messages(asked.id, after, asked.status, asked.limit + 1)
        items = found[: asked.limit]
        return PostingMessages(
            items=items,
            next_cursor=str(items[-1].id) if len(found) > asked.limit else None,
        )


def _cursor(last: PostingProgress) -> str:
    return f"{last.accepted_at.timestamp():.6f}_{last.id}"


def _before(cursor: str | None) -> tuple[datetime, UUID] | None:
    """The posting that a cursor stands for; None where it stands for none."""
    if cursor is None:
        return _THE_END
    at, _, id_ = cursor.partition("_")
    try:
        return datetime.fromtimestamp(float(at), UTC), UUID(id_)
    except (ValueError, OverflowError, OSError):
        return None


def _bound(
    model: type[B], operation: Callable[[Asker, B], Awaitable[Answer]], *, within: str = ""
) -> Handler:
    async def handle(asker: Asker, body: bytes) -> Answer:
        try:
            asked = model.model_validate_json(body)
        except ValidationError as error:
            errors = field_errors(error, within=within)
            detail = "; ".join(
                f"{each.field}: {each.message}".removeprefix(": ") for each in errors
            )
            return Failure(code=FailureCode.INVALID, detail=detail, errors=errors)
        return await operation(asker, asked)

    return handle
