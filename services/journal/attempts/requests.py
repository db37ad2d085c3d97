"""The request handlers: attempts, timelines, the live tail, and the clients in the journal."""

import asyncio
from collections.abc import Mapping
from typing import Final

from services.journal.attempts.search import reference, search_of
from services.journal.attempts.store import NEWEST, OLDEST, Entries
from services.journal.attempts.timeline import timeline
from services.journal.scope import (
    INVALID_CURSOR,
    decode_place,
    encode_place,
    for_operators,
    origin_of,
    selected,
    visible,
)
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.journal import Attempt, CallbackAttempt, Entry, EntryKind
from shared.contracts.journal_reads import (
    LIST_ATTEMPTS,
    LIST_CLIENT_IDS,
    MAX_TIMELINE,
    READ_ATTEMPTS,
    READ_TIMELINE,
    TAIL,
    AttemptList,
    CallbackAttemptPage,
    ClientIdList,
    ListAttempts,
    ListClientIds,
    ReadAttempts,
    ReadTimeline,
    Tail,
    TailPage,
    Timeline,
)
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid

NOT_FOUND: Final = Failure(
    code=FailureCode.NOT_FOUND, detail="the journal has no callback with this id"
)
_ENDS_EARLY: Final = invalid([FieldError(field="until", message="must be later than `since`")])
# Entries of letters have no client. Only operators see who has moved them, and where from.
_MOVED: Final = frozenset({EntryKind.REDRIVEN, EntryKind.DISCARDED})
_WITHOUT_CLIENT: Final = _MOVED | {kind for kind in EntryKind if kind.startswith("message_")}


class AttemptRequests:
    """Handles reads of entries. `slots` limits those that use a connection at a time."""

    def __init__(self, entries: Entries, slots: asyncio.Semaphore) -> None:
        self._entries = entries
        self._slots = slots

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(LIST_ATTEMPTS, self._list),
                bound(READ_ATTEMPTS, self._read),
                bound(READ_TIMELINE, self._timeline),
                bound(TAIL, for_operators(self._tail)),
                bound(LIST_CLIENT_IDS, for_operators(self._clients)),
            )
        )

    async def _list(self, context: RequestContext, request: ListAttempts) -> Response:
        client_id = selected(context, request.client_id)
        if isinstance(client_id, Failure):
            return client_id
        if request.since and request.until and request.since >= request.until:
            return _ENDS_EARLY
        try:
            before = NEWEST if request.cursor is None else decode_place(request.cursor)
        except ValueError:
            return INVALID_CURSOR
        async with self._slots:
            found = await self._entries.search(search_of(request, client_id), before, request.limit)
        return AttemptList(
            items=[_attempt(entry) for entry in found.entries],
            next_cursor=None if found.next is None else encode_place(found.next),
        )

    async def _read(self, context: RequestContext, request: ReadAttempts) -> Response:
        try:
            after = OLDEST if request.cursor is None else decode_place(request.cursor)
        except ValueError:
            return INVALID_CURSOR
        ref, client_id = reference(request.id), visible(context)
        async with self._slots:
            found = await self._entries.attempts(ref, client_id, after, request.limit)
            if not found.entries:
                story = await self._entries.story(ref, client_id, NEWEST, 1)
                if not any(_visible(entry, client_id) for entry in story.entries):
                    return NOT_FOUND
        return CallbackAttemptPage(
            items=[_callback_attempt(entry) for entry in found.entries],
            next_cursor=None if found.next is None else encode_place(found.next),
        )

    async def _timeline(self, context: RequestContext, request: ReadTimeline) -> Response:
        try:
            before = NEWEST if request.cursor is None else decode_place(request.cursor)
        except ValueError:
            return INVALID_CURSOR
        ref, client_id = reference(request.id), selected(context, request.client_id)
        if isinstance(client_id, Failure):
            return client_id
        async with self._slots:
            found = await self._entries.story(ref, visible(context), before, MAX_TIMELINE)
            steps = [entry for entry in found.entries if _is_of(entry, request.client_id)]
            own = [entry for entry in steps if _visible(entry, visible(context))]
            if not own and request.cursor is None:
                return NOT_FOUND
            ids = {ref.callback_id} | {entry.callback_id for entry in own if entry.callback_id}
            kept = await self._entries.kept(ids, client_id)
            gaps = await self._entries.gaps(own[-1].at) if own else []
        shown = steps if context.operator else [_for_client(entry) for entry in steps]
        return Timeline(
            id=request.id,
            items=timeline(shown),
            next_cursor=None if found.next is None else encode_place(found.next),
            kept=kept,
            gaps=gaps,
        )

    async def _tail(self, _: RequestContext, request: Tail) -> Response:
        async with self._slots:
            if request.after is None:
                return TailPage(items=[], seq=await self._entries.last_seq())
            items, seq = await self._entries.tail(
                request.after,
                request.limit,
                client_id=request.client_id,
                target=None if request.target is None else origin_of(request.target),
                outcome=request.outcome,
                kinds=request.kinds,
            )
        return TailPage(items=items, seq=seq)

    async def _clients(self, _: RequestContext, request: ListClientIds) -> Response:
        async with self._slots:
            return ClientIdList(items=await self._entries.clients(request.prefix, request.limit))


def _is_of(entry: Entry, client_id: str | None) -> bool:
    """Return whether an entry is about a client's callback. None: any client's."""
    return client_id is None or entry.client_id == client_id or entry.kind in _WITHOUT_CLIENT


def _visible(entry: Entry, client_id: str | None) -> bool:
    """Return whether an entry shows that the callback is the client's."""
    return client_id is None or entry.kind not in _MOVED


def _for_client(entry: Entry) -> Entry:
    """Return an entry without what only operators see."""
    if entry.kind in _MOVED:
        return entry.model_copy(update={"detail": {}})
    if entry.kind is EntryKind.REPLAYED and entry.detail.get("actor") != entry.client_id:
        return entry.model_copy(update={"detail": entry.detail | {"actor": None}})
    return entry


def _callback_attempt(entry: Entry) -> CallbackAttempt:
    return CallbackAttempt(**_fields(entry))


def _attempt(entry: Entry) -> Attempt:
    return Attempt(
        **_fields(entry),
        callback_id=entry.callback_id or "",
        schedule_id=entry.schedule_id,
        client_id=entry.client_id,
        dispatch=entry.dispatch,
        next_at=entry.next_at,
        trace_id=entry.trace_id,
    )


def _fields(entry: Entry) -> dict[str, object]:
    return {
        "at": entry.at,
        "attempt": entry.attempt or 0,
        "target": entry.target,
        "status_code": entry.status_code,
        "duration": entry.duration,
        "outcome": entry.outcome,
        "reason": entry.reason,
        "response": entry.response,
    }
