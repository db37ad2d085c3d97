"""The request handlers of the queue `mailings.requests`."""

import asyncio
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from services.mailings.domain import posting_id_of_key, posting_id_of_request
from services.mailings.intake import Intake, PostingConflict, new_posting
from services.mailings.rendering.loader import TemplateLoader
from services.mailings.store import Store
from services.mailings.unsubscribe import Unsubscribe
from shared.amqp.publisher import new_id
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.clock import Clock
from shared.contracts.posting_requests import (
    CHANGE_SUBSCRIPTION,
    CREATE_POSTING,
    GET_POSTING,
    LIST_POSTING_MESSAGES,
    LIST_POSTINGS,
    ChangeSubscription,
    CreatePosting,
    GetPosting,
    ListPostingMessages,
    ListPostings,
    PostingMessages,
    Postings,
    SubscriptionChanged,
)
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.pagination import END, decode_cursor, encode_cursor

# Requests that use a database connection at a time, except creations.
MAX_CONCURRENT_READS: Final = 2
NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="the posting does not exist")
CONFLICT: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="a different posting was created with this idempotency key",
)

INVALID_CURSOR: Final = invalid([FieldError(field="cursor", message="is not a valid cursor")])


class Requests:
    """Handles requests. Only its client sees a posting; one without a client is visible to all."""

    def __init__(
        self,
        intake: Intake,
        store: Store,
        templates: TemplateLoader,
        unsubscribe: Unsubscribe,
        clock: Clock,
    ) -> None:
        self._intake = intake
        self._templates = templates
        self._store = store
        self._unsubscribe = unsubscribe
        self._clock = clock
        self._reads = asyncio.Semaphore(MAX_CONCURRENT_READS)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(CREATE_POSTING, self._create, within="posting"),
                bound(GET_POSTING, self._get),
                bound(LIST_POSTINGS, self._list),
                bound(LIST_POSTING_MESSAGES, self._messages),
                bound(CHANGE_SUBSCRIPTION, self._change_subscription),
            )
        )

    async def _create(self, context: RequestContext, command: CreatePosting) -> Response:
        key = command.idempotency_key
        # Without a key, a request that is delivered again still finds its own posting.
        id_ = (
            posting_id_of_request(context.client_id, context.message_id or new_id())
            if key is None
            else posting_id_of_key(context.client_id, key)
        )
        result = await self._intake.accept(
            new_posting(
                id_,
                command.posting,
                at=self._clock.now(),
                templates=self._templates,
                client_id=context.client_id,
                traceparent=context.traceparent,
            )
        )
        return CONFLICT if isinstance(result, PostingConflict) else result

    async def _get(self, context: RequestContext, command: GetPosting) -> Response:
        async with self._reads:
            return await self._store.status(command.id, context.client_id) or NOT_FOUND

    async def _list(self, context: RequestContext, command: ListPostings) -> Response:
        try:
            before = END if command.cursor is None else decode_cursor(command.cursor)
        except ValueError:
            return INVALID_CURSOR
        async with self._reads:
            found = await self._store.postings(
                context.client_id, command.from_event, before, command.limit + 1
            )
        items = found[: command.limit]
        more = len(found) > command.limit
        last = (items[-1].accepted_at, items[-1].id) if more else None
        return Postings(items=items, next_cursor=encode_cursor(last) if last else None)

    async def _messages(self, context: RequestContext, command: ListPostingMessages) -> Response:
        try:
            after = UUID(command.cursor) if command.cursor else UUID(int=0)
        except ValueError:
            return INVALID_CURSOR
        async with self._reads:
            if not await self._store.find(command.id, context.client_id):
                return NOT_FOUND
            found = await self._store.messages(command.id, after, command.status, command.limit + 1)
        items = found[: command.limit]
        return PostingMessages(
            items=items,
            next_cursor=str(items[-1].id) if len(found) > command.limit else None,
        )

    async def _change_subscription(
        self, _: RequestContext, command: ChangeSubscription
    ) -> Response:
        subscription = self._unsubscribe.verified(command.token)
        if subscription is None:
            return invalid([FieldError(field="token", message="is not a valid token")])
        async with self._reads:
            await self._store.set_subscribed(subscription, subscribed=command.subscribed)
        return SubscriptionChanged(subscribed=command.subscribed)
