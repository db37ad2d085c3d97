"""The request handlers of jobs: bulk work in the background.

Operators see and cancel every job, a client only its own.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from services.journal.jobs.store import Jobs, StoredJob
from services.journal.scope import visible
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.journal_dead import (
    CANCEL_JOB,
    LIST_JOBS,
    READ_JOB,
    CancelJob,
    JobPage,
    ListJobs,
    ReadJob,
)
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.pagination import END, decode_cursor, encode_cursor

NO_SUCH_JOB: Final = Failure(code=FailureCode.NOT_FOUND, detail="the job does not exist")
NOT_YOURS: Final = Failure(
    code=FailureCode.FORBIDDEN, detail="only operators may see the jobs of others"
)


class JobRequests:
    """Reads, lists and cancels jobs. `slots` limits the reads at a time."""

    def __init__(self, jobs: Jobs, slots: asyncio.Semaphore) -> None:
        self._jobs = jobs
        self._slots = slots

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(READ_JOB, self._read),
                bound(LIST_JOBS, self._list),
                bound(CANCEL_JOB, self._cancel),
            )
        )

    async def _read(self, context: RequestContext, query: ReadJob) -> Response:
        async with self._slots:
            job = await self._jobs.get(query.id)
        if job is None:
            return NO_SUCH_JOB
        return job.view() if _may_see(context, job) else NOT_YOURS

    async def _list(self, context: RequestContext, query: ListJobs) -> Response:
        try:
            before = END if query.cursor is None else decode_cursor(query.cursor)
        except ValueError:
            return invalid([FieldError(field="cursor", message="is not a cursor of this list")])
        async with self._slots:
            found = await self._jobs.list(
                before,
                query.limit + 1,
                kind=query.kind,
                status=query.status,
                client_id=visible(context),
            )
        page = found[: query.limit]
        more = len(found) > query.limit
        last = encode_cursor((page[-1].created_at, page[-1].id)) if more else None
        return JobPage(items=[job.view() for job in page], next_cursor=last)

    async def _cancel(self, context: RequestContext, query: CancelJob) -> Response:
        """Cancel a job. One that has ended stays as it is."""
        async with self._slots:
            job = await self._jobs.get(query.id)
        if job is None:
            return NO_SUCH_JOB
        if not _may_see(context, job):
            return NOT_YOURS
        return (await self._jobs.cancel(context, query.id) or job).view()


def _may_see(context: RequestContext, job: StoredJob) -> bool:
    return context.operator or job.client_id == (context.client_id or "")
