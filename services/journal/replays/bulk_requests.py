"""The request handler that replays everything that matches, or counts it."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final
from uuid import UUID

import asyncpg

from services.journal.jobs.store import Jobs, NewJob, id_of_request
from services.journal.pauses.requests import origin
from services.journal.replays.bulk import Progress
from services.journal.replays.requests import NO_KEY
from services.journal.replays.store import Replays, SearchTooSlowError, Selection
from services.journal.scope import visible
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.journal import Filter, JobKind, JobStarted, Matching
from shared.contracts.journal_replays import START_REPLAY, StartReplay
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.http.guard import ForbiddenTargetError
from shared.postgres.pool import Database
from shared.security.encryption import SecretCipher

NOT_YOURS: Final = Failure(
    code=FailureCode.FORBIDDEN, detail="only operators may replay the callbacks of others"
)


# Counts in progress in one process, and seconds until one gives up. It reads the attempts of all
# clients.
MAX_COUNTS: Final = 2
MAX_COUNT_TIME: Final = 60.0
COUNTING: Final = Failure(
    code=FailureCode.UNAVAILABLE,
    detail="an earlier request of this client is still being counted; try again when it has ended",
)
TOO_MANY: Final = Failure(
    code=FailureCode.UNAVAILABLE,
    detail="too many attempts to count; set a later `since` in the filter",
)


class BulkReplayRequests:
    """Starts replay jobs. `wake` starts the work on a job."""

    def __init__(
        self,
        database: Database,
        replays: Replays,
        jobs: Jobs,
        cipher: SecretCipher | None,
        *,
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._replays = replays
        self._jobs = jobs
        self._cipher = cipher
        self._wake = wake
        self._counts = asyncio.Semaphore(MAX_COUNTS)
        self._counting: set[str] = set()

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict((bound(START_REPLAY, self._start),))

    async def _start(self, context: RequestContext, command: StartReplay) -> Response:
        client_id = visible(context)
        chosen = command.filter
        if chosen.client_id is not None:
            if client_id not in (None, chosen.client_id):
                return NOT_YOURS
            client_id = chosen.client_id
        try:
            chosen = _with_port(chosen)
        except (ValueError, ForbiddenTargetError) as error:
            return invalid([FieldError(field="filter.target", message=str(error))])
        if context.operator:
            return await self._counted(context, command, chosen, client_id)
        caller = context.client_id or ""
        if caller in self._counting:
            return COUNTING
        self._counting.add(caller)
        try:
            return await self._counted(context, command, chosen, client_id)
        finally:
            self._counting.discard(caller)

    async def _counted(
        self, context: RequestContext, command: StartReplay, chosen: Filter, client_id: str | None
    ) -> Response:
        try:
            async with asyncio.timeout(MAX_COUNT_TIME), self._counts:
                if not command.dry_run:
                    return await self._run(context, command, chosen, client_id)
                selection = await self._select(command, chosen, client_id)
                return Matching(matching=await self._replays.count(selection))
        except (TimeoutError, SearchTooSlowError):
            return TOO_MANY

    async def _run(
        self, context: RequestContext, command: StartReplay, chosen: Filter, client_id: str | None
    ) -> Response:
        """Start a job, unless an earlier delivery of this request has started it."""
        if self._cipher is None:
            return NO_KEY
        id_ = id_of_request(context)
        if await self._jobs.get(id_) is None:
            selection = await self._select(command, chosen, client_id)
            new = NewJob(
                id=id_,
                kind=JobKind.REPLAY,
                filter=chosen,
                rate=command.rate,
                matching=await self._replays.count(selection),
                actor=context.actor,
                client_id=visible(context),
                url=None if command.url is None else self._cipher.encrypt(command.url.encode()),
                cursor=Progress.of(selection).as_json(),
            )
            with suppress(asyncpg.UniqueViolationError):  # the same request, in another process
                async with self._database.transaction() as connection:
                    if new.client_id is not None:
                        running = await self._jobs.running_of(connection, new.client_id)
                        if running not in (None, id_):
                            return _running(running)
                    await self._jobs.start(connection, context, new)
            self._wake()
        return JobStarted(job=id_)

    async def _select(
        self, command: StartReplay, chosen: Filter, client_id: str | None
    ) -> Selection:
        horizon = await self._replays.horizon()
        return Selection(chosen, command.status == "failed", client_id, horizon)


def _running(job: UUID | None) -> Failure:
    return Failure(
        code=FailureCode.CONFLICT,
        detail=f"your job {job} is running; wait for its end, or cancel it",
    )


def _with_port(chosen: Filter) -> Filter:
    """Return a filter whose target is as in facts."""
    if chosen.target is None:
        return chosen
    return chosen.model_copy(update={"target": origin(chosen.target)})
