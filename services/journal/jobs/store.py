"""The table of jobs. All methods raise StoreConnectionLostError if the database is unavailable."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

from services.journal.audit.store import Audit
from services.journal.reading import reading
from shared.amqp.rpc import RequestContext
from shared.contracts.journal import Filter, Job, JobKind, JobStatus
from shared.errors import InfrastructureError
from shared.ids import uuid7
from shared.pagination import Position
from shared.postgres.pool import Database
from shared.postgres.queries import queries

_SQL: Final = queries("services.journal", "jobs.sql")
# Of the ids of jobs that requests start, so that a repeat of the request starts no second one.
_NAMESPACE: Final = UUID("5b0c8b0a-5d0c-4f63-9d6e-0d6a1f0c6b1e")
# Seconds for which a claim holds a job. A process renews it twice a second, so after its death
# another one continues within ten seconds.
LEASE: Final = 10.0


class LeaseLostError(InfrastructureError):
    """Another process has claimed the job. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to start.

    queue: the work queue of dead letters, which has one running job at a time.
    url: encrypted.
    client_id: '' is the anonymous client, None is all clients.
    cursor: anything that its work needs, as JSON.
    """

    id: UUID
    kind: JobKind
    filter: Filter
    rate: float
    matching: int
    actor: str | None
    client_id: str | None
    queue: str | None = None
    url: bytes | None = None
    cursor: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job with its progress. `lease` identifies its last claim."""

    id: UUID
    kind: JobKind
    status: JobStatus
    queue: str | None
    filter: Filter
    url: bytes | None
    rate: float
    matching: int
    done: int
    failed: int
    cursor: Mapping[str, Any]
    actor: str | None
    client_id: str | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None
    lease: UUID | None

    def view(self) -> Job:
        """Return the job for callers."""
        return Job(
            id=self.id,
            kind=self.kind,
            status=self.status,
            queue=self.queue,
            filter=self.filter,
            rate=self.rate,
            matching=self.matching,
            done=self.done,
            failed=self.failed,
            actor=self.actor,
            client_id=self.client_id or None,
            error=self.error,
            created_at=self.created_at,
            finished_at=self.finished_at,
        )


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this process works on. `continued`: another claim has worked on it before."""

    job: StoredJob
    continued: bool


def id_of_request(context: RequestContext) -> UUID:
    """Return the id of the job that a request starts: the same one when it is delivered again."""
    return uuid7() if context.message_id is None else uuid5(_NAMESPACE, context.message_id)


class Jobs:
    """Starts, claims and ends jobs."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._database = database
        self._audit = audit

    async def get(self, id_: UUID) -> StoredJob | None:
        """Return a job, or None."""
        row = await self._database.fetchrow(_SQL["get"], id_)
        return None if row is None else _job(row)

    async def running_on(self, connection: Any, queue: str) -> UUID | None:
        """Return the running job of a queue or None. None is started until the transaction ends."""
        await connection.execute(_SQL["lock"], f"queue {queue}")
        found: UUID | None = await connection.fetchval(_SQL["running"], queue)
        return found

    async def running_of(self, connection: Any, client_id: str) -> UUID | None:
        """Return the running job of a client, or None. None is started until the transaction ends.

        client_id: '' is the anonymous client.
        """
        await connection.execute(_SQL["lock"], f"client {client_id}")
        found: UUID | None = await connection.fetchval(_SQL["running_of"], client_id)
        return found

    async def busy_queues(self) -> frozenset[str]:
        """Return the queues with a running job."""
        return frozenset(row["queue"] for row in await self._database.fetch(_SQL["running_queues"]))

    async def start(self, connection: Any, context: RequestContext, new: NewJob) -> None:
        """Insert a running job and record who started it, in the caller's transaction.

        Raises:
            asyncpg.UniqueViolationError: the id is used, or the queue has a running job.
        """
        detail = {
            "job": str(new.id),
            "matching": new.matching,
            "rate": new.rate,
            "filter": new.filter.model_dump(mode="json", exclude_none=True),
        }
        await self._audit.record(
            context,
            new.kind.value,
            object_=new.queue,
            client_id=new.client_id or None,
            detail=detail,
            result="started",
            connection=connection,
        )
        await connection.execute(
            _SQL["insert"],
            new.id,
            new.kind.value,
            new.queue,
            new.filter.model_dump_json(exclude_none=True),
            new.url,
            new.rate,
            new.matching,
            None if new.cursor is None else json.dumps(new.cursor),
            new.actor,
            new.client_id,
        )

    async def list(
        self,
        before: Position,
        limit: int,
        *,
        kind: JobKind | None,
        status: JobStatus | None,
        client_id: str | None,
    ) -> list[StoredJob]:
        """Return jobs before a position, the latest first. `client_id` None is all clients."""
        async with reading(self._database) as connection:
            rows = await connection.fetch(_SQL["list"], *before, kind, status, client_id, limit)
        return [_job(row) for row in rows]

    async def cancel(self, context: RequestContext, id_: UUID) -> StoredJob | None:
        """Cancel a job if it is running, and return it if it was. Record who did it."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_SQL["cancel"], id_)
            if row is None:
                return None
            job = _job(row)
            detail = {"job": str(job.id), "kind": job.kind.value, "done": job.done}
            await self._audit.record(
                context,
                "cancel",
                object_=job.queue,
                client_id=job.client_id or None,
                detail=detail,
                result="cancelled",
                connection=connection,
            )
        return job

    async def claim(self) -> ClaimedJob | None:
        """Claim the oldest running job that no process works on, or return None."""
        row = await self._database.fetchrow(_SQL["claim"], uuid4(), LEASE)
        return None if row is None else ClaimedJob(_job(row), row["continued"])

    async def renew(self, job: StoredJob) -> JobStatus | None:
        """Renew the lease, and return the status; None if the lease is lost."""
        row = await self._database.fetchrow(_SQL["renew"], job.id, job.lease, LEASE)
        return None if row is None else JobStatus(row["status"])

    async def release(self, job: StoredJob) -> None:
        """Let another process continue at once."""
        await self._database.execute(_SQL["release"], job.id, job.lease)

    async def advance(
        self,
        connection: Any,
        job: StoredJob,
        *,
        done: int,
        failed: int = 0,
        cursor: Mapping[str, Any] | None = None,
    ) -> None:
        """Add to the counts, and move the cursor if one is given, in the caller's transaction.

        Raises:
            LeaseLostError: another process works on the job.
        """
        text = None if cursor is None else json.dumps(cursor)
        status = await connection.execute(_SQL["advance"], job.id, job.lease, done, failed, text)
        if status != "UPDATE 1":
            raise LeaseLostError("another process works on the job", effect_unknown=False)

    async def finish(self, job: StoredJob, status: JobStatus, error: str | None = None) -> None:
        """End a job, unless it was cancelled or its lease is lost."""
        await self._database.execute(_SQL["finish"], job.id, job.lease, status.value, error)


def _job(row: Any) -> StoredJob:
    return StoredJob(
        id=row["id"],
        kind=JobKind(row["kind"]),
        status=JobStatus(row["status"]),
        queue=row["queue"],
        filter=Filter.model_validate_json(row["filter"]),
        url=row["url"],
        rate=row["rate"],
        matching=row["matching"],
        done=row["done"],
        failed=row["failed"],
        cursor=json.loads(row["cursor"] or "{}"),
        actor=row["actor"],
        client_id=row["client_id"],
        error=row["error"],
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        lease=row["lease"],
    )
