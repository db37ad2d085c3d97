"""The requests on the queue `mailings.requests`: from bodies to answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel

from services.mailings.domain import posting_of_key
from services.mailings.intake import Intake, OtherOrder, order
from services.mailings.store import Store
from shared.amqp.parsing import parse_request
from shared.amqp.rpc import RequestContext
from shared.clock import Clock
from shared.contracts.posting_requests import (
    CREATE_POSTING,
    GET_POSTING,
    LIST_POSTING_MESSAGES,
    LIST_POSTINGS,
    CreatePosting,
    GetPosting,
    ListPostingMessages,
    ListPostings,
    PostingMessages,
    Postings,
)
from shared.contracts.requests import Failure, FailureCode, FieldError, RpcOperation, invalid
from shared.pagination import END, decode_cursor, encode_cursor

B = TypeVar("B", bound=BaseModel)
Answer = BaseModel | Failure
Handler = Callable[[RequestContext, bytes], Awaitable[Answer]]

# Requests that use a connection to the database at a time.
SIDE_BY_SIDE: Final = 2
NO_POSTING: Final = Failure(code=FailureCode.NOT_FOUND, detail="there is no such posting")
OTHER_ORDER: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="another posting was created under this idempotency key",
)

NO_CURSOR: Final = invalid([FieldError(field="cursor", message="is none that an answer held")])


class Requests:
    """Answers requests. A posting of a client is seen by that client, any other by everybody."""

    def __init__(self, intake: Intake, store: Store, clock: Clock) -> None:
        self._intake = intake
        self._store = store
        self._clock = clock
        self._places = asyncio.Semaphore(SIDE_BY_SIDE)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                _bound(CREATE_POSTING, self._create, within="posting"),
                _bound(GET_POSTING, self._get),
                _bound(LIST_POSTINGS, self._list),
                _bound(LIST_POSTING_MESSAGES, self._messages),
            )
        )

    async def _create(self, context: RequestContext, wish: CreatePosting) -> Answer:
        key = wish.idempotency_key
        id_ = uuid4() if key is None else posting_of_key(context.client_id, key)
        taken = await self._intake.take(
            order(
                id_,
                wish.posting,
                at=self._clock.now(),
                client_id=context.client_id,
                traceparent=context.traceparent,
            )
        )
        return OTHER_ORDER if isinstance(taken, OtherOrder) else taken

    async def _get(self, context: RequestContext, wish: GetPosting) -> Answer:
        async with self._places:
            return await self._store.status(wish.id, context.client_id) or NO_POSTING

    async def _list(self, context: RequestContext, wish: ListPostings) -> Answer:
        try:
            before = decode_cursor(wish.cursor) if wish.cursor else END
        except ValueError:
            return NO_CURSOR
        async with self._places:
            found = await self._store.postings(
                context.client_id, wish.from_event, before, wish.limit + 1
            )
        items = found[: wish.limit]
        more = len(found) > wish.limit
        last = (items[-1].accepted_at, items[-1].id) if more else None
        return Postings(items=items, next_cursor=encode_cursor(last) if last else None)

    async def _messages(self, context: RequestContext, wish: ListPostingMessages) -> Answer:
        try:
            after = UUID(wish.cursor) if wish.cursor else UUID(int=0)
        except ValueError:
            return NO_CURSOR
        async with self._places:
            if not await self._store.known(wish.id, context.client_id):
                return NO_POSTING
            found = await self._store.messages(wish.id, after, wish.status, wish.limit + 1)
        items = found[: wish.limit]
        return PostingMessages(
            items=items,
            next_cursor=str(items[-1].id) if len(found) > wish.limit else None,
        )


def _bound(
    operation: RpcOperation[B],
    respond: Callable[[RequestContext, B], Awaitable[Answer]],
    *,
    within: str = "",
) -> tuple[str, Handler]:
    async def handle(context: RequestContext, body: bytes) -> Answer:
        wish = parse_request(operation.request, body, within=within)
        return wish if isinstance(wish, Failure) else await respond(context, wish)

    return operation.name, handle
