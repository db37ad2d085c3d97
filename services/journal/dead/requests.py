"""The request handlers of dead letters. Only operators may call them."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
from pydantic import BaseModel

from services.journal.dead.index import NEWEST, LetterIndex, Position
from services.journal.dead.letters import LetterReader
from services.journal.dead.selection import Selection
from services.journal.jobs.store import Jobs, NewJob, id_of_request
from services.journal.reading import reading
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.journal import Filter, JobKind, JobStarted, Matching
from shared.contracts.journal_dead import (
    GROUP_DEAD,
    LIST_DEAD,
    READ_LETTER,
    START_DISCARD,
    START_REDRIVE,
    GroupDead,
    GroupList,
    LetterPage,
    ListDead,
    ReadLetter,
    StartMove,
)
from shared.contracts.requests import (
    Failure,
    FailureCode,
    FieldError,
    RpcOperation,
    invalid,
)
from shared.postgres.pool import Database
from shared.topology import WORK_QUEUES

B = TypeVar("B", bound=BaseModel)

FORBIDDEN: Final = Failure(
    code=FailureCode.FORBIDDEN, detail="only operators may see and move dead letters"
)
_QUEUES: Final = frozenset(queue.name for queue in WORK_QUEUES)
NO_QUEUE: Final = Failure(
    code=FailureCode.NOT_FOUND, detail=f"the work queue is not one of: {', '.join(sorted(_QUEUES))}"
)
NO_LETTER: Final = Failure(
    code=FailureCode.NOT_FOUND, detail="the letter is not in the dead-letter queue"
)


# Counts in progress in one process, and as many for jobs that start. Each can read all letters.
MAX_COUNTS: Final = 1
# Seconds until one gives up.
MAX_COUNT_TIME: Final = 60.0
TOO_MANY: Final = Failure(
    code=FailureCode.UNAVAILABLE,
    detail="too many letters to count; filter them by the key of a group",
)


class DeadRequests:
    """Lists, groups, reads and moves dead letters.

    slots: limits the reads at a time.
    wake: starts the work on a job.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes each collaborator
        self,
        database: Database,
        index: LetterIndex,
        jobs: Jobs,
        reader: LetterReader,
        slots: asyncio.Semaphore,
        *,
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._index = index
        self._jobs = jobs
        self._reader = reader
        self._slots = slots
        self._wake = wake
        self._counts, self._starts = asyncio.Semaphore(MAX_COUNTS), asyncio.Semaphore(MAX_COUNTS)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                _for_operators(LIST_DEAD, self._list, within="filter"),
                _for_operators(READ_LETTER, self._read),
                _for_operators(GROUP_DEAD, self._group),
                _for_operators(START_REDRIVE, partial(self._start, JobKind.REDRIVE), within="move"),
                _for_operators(START_DISCARD, partial(self._start, JobKind.DISCARD), within="move"),
            )
        )

    async def _list(self, _: RequestContext, query: ListDead) -> Response:
        try:
            before = NEWEST if query.cursor is None else _decode(query.cursor)
        except ValueError:
            return invalid([FieldError(field="cursor", message="is not a cursor of this list")])
        async with self._slots:
            selection = await self._selection(query.queue, query.filter)
            found = await self._index.page(selection, before, query.limit)
        return LetterPage(
            items=found.letters, next_cursor=None if found.next is None else _encode(found.next)
        )

    async def _read(self, _: RequestContext, query: ReadLetter) -> Response:
        if query.queue in await self._jobs.busy_queues():
            return Failure(
                code=FailureCode.UNAVAILABLE,
                detail="a job moves letters of this queue; read the letter when it has ended",
            )
        return await self._reader.read(query.queue, query.id) or NO_LETTER

    async def _group(self, _: RequestContext, query: GroupDead) -> Response:
        async with self._slots, reading(self._database) as connection:
            # Letters that arrive in between are in the groups, but not in the total.
            total = await self._index.total(connection, query.queue)
            groups = await self._index.groups(connection, query.queue, query.group_by, query.limit)
        return GroupList(items=groups, total=total)

    async def _start(self, kind: JobKind, context: RequestContext, query: StartMove) -> Response:
        """Start a job for the letters that match now, or count them."""
        # Dry runs do not delay jobs that start.
        turn = self._counts if query.move.dry_run else self._starts
        try:
            async with asyncio.timeout(MAX_COUNT_TIME), turn:
                if not query.move.dry_run:
                    return await self._run(kind, context, query)
                selection = await self._selection(query.queue, query.move.filter)
                return Matching(matching=await self._index.count(selection))
        except TimeoutError:
            return TOO_MANY

    async def _run(self, kind: JobKind, context: RequestContext, query: StartMove) -> Response:
        """Start a job, unless an earlier delivery of this request has started it."""
        id_ = id_of_request(context)
        if await self._jobs.get(id_) is None:
            selection, matching = await self._index.select_now(query.queue, query.move.filter)
            new = NewJob(
                id=id_,
                kind=kind,
                queue=query.queue,
                filter=query.move.filter,
                rate=query.move.rate,
                matching=matching,
                actor=context.actor or context.client_id,
                client_id=None,
                cursor={
                    "last": selection.last,
                    "reason_key": selection.reason_key,
                    "tries": 0,
                },
            )
            with suppress(asyncpg.UniqueViolationError):  # the same request, in another process
                async with self._database.transaction() as connection:
                    running = await self._jobs.running_on(connection, query.queue)
                    if running not in (None, id_):
                        return _running(running, query.queue)
                    await self._jobs.start(connection, context, new)
            self._wake()
        return JobStarted(job=id_)

    async def _selection(self, queue: str, chosen: Filter) -> Selection:
        async with reading(self._database) as connection:
            return await self._index.selection(connection, queue, chosen)


def _running(job: UUID | None, queue: str) -> Failure:
    return Failure(
        code=FailureCode.CONFLICT,
        detail=f"the job {job} moves letters of {queue} already; wait for its end, or cancel it",
    )


def _for_operators(
    operation: RpcOperation[B],
    respond: Callable[[RequestContext, B], Awaitable[Response]],
    *,
    within: str = "",
) -> tuple[str, Handler]:
    """Bind an operation that only operators may call, on a queue that exists."""

    async def check(context: RequestContext, query: Any) -> Response:
        if not context.operator:
            return FORBIDDEN
        return await respond(context, query) if query.queue in _QUEUES else NO_QUEUE

    return bound(operation, check, within=within)


def _encode(position: Position) -> str:
    at, seq = position
    return base64.urlsafe_b64encode(f"{at.astimezone(UTC).isoformat()}/{seq}".encode()).decode()


def _decode(cursor: str) -> Position:
    at, _, seq = base64.urlsafe_b64decode(cursor.encode()).decode().partition("/")
    time = datetime.fromisoformat(at)
    if time.tzinfo is not UTC or not 0 <= int(seq) < 1 << 63:
        raise ValueError("a cursor holds a time in UTC and a number")
    return time, int(seq)
