"""The operations on dead letters and jobs, with their requests and responses.

Only operators may call them, except for reading and cancelling a client's own jobs. A repeated
delivery of the same request starts no second job.
"""

from typing import Any, Final, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, Field

from shared.contracts.journal import (
    DEFAULT_PAGE_SIZE,
    DEFAULT_RATE,
    RESPONSE,
    Cursor,
    Filter,
    Job,
    JobKind,
    JobStarted,
    JobStatus,
    Limit,
    Matching,
    Rate,
    SearchText,
)
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE
from shared.topology import JOURNAL_REQUESTS


class ListDead(BaseModel):
    """List dead letters of a work queue, the latest first."""

    model_config = ENVELOPE

    queue: SearchText
    filter: Filter = Filter()
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_PAGE_SIZE


class Letter(BaseModel):
    """A dead letter. Its body stays in its queue."""

    model_config = RESPONSE

    letter_id: str
    logical_id: str | None
    client_id: str | None
    target: str | None
    reason: str
    at: AwareDatetime


class LetterPage(BaseModel):
    """A page of dead letters. `next_cursor` is null on the last page."""

    model_config = RESPONSE

    items: list[Letter]
    next_cursor: str | None


class GroupDead(BaseModel):
    """Count the dead letters of a work queue by reason or target, the most frequent first."""

    model_config = ENVELOPE

    queue: SearchText
    group_by: Literal["reason", "target"] = "reason"
    limit: Limit = DEFAULT_PAGE_SIZE


class Group(BaseModel):
    """A group of dead letters. `key` is null for letters without a target."""

    model_config = RESPONSE

    key: str | None
    count: int


class GroupList(BaseModel):
    """Groups of dead letters, and the number of all in the queue."""

    model_config = RESPONSE

    items: list[Group]
    total: int


class StartMove(BaseModel):
    """Redrive or discard the dead letters that match. With `dry_run`, only count them."""

    model_config = ENVELOPE

    queue: SearchText
    filter: Filter = Filter()
    dry_run: bool = False
    rate: Rate = Field(default=DEFAULT_RATE, description="Dead letters per second.")


class ReadJob(BaseModel):
    """Read one job."""

    model_config = ENVELOPE

    id: UUID


class ListJobs(BaseModel):
    """List jobs, the latest first."""

    model_config = ENVELOPE

    kind: JobKind | None = None
    status: JobStatus | None = None
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_PAGE_SIZE


class JobPage(BaseModel):
    """A page of jobs. `next_cursor` is null on the last page."""

    model_config = RESPONSE

    items: list[Job]
    next_cursor: str | None


class CancelJob(BaseModel):
    """Cancel a running job. What it has done stays done."""

    model_config = ENVELOPE

    id: UUID


LIST_DEAD: Final = RpcOperation(JOURNAL_REQUESTS, "ListDead", ListDead, (LetterPage,))
GROUP_DEAD: Final = RpcOperation(JOURNAL_REQUESTS, "GroupDead", GroupDead, (GroupList,))
START_REDRIVE: Final = RpcOperation(
    JOURNAL_REQUESTS, "StartRedrive", StartMove, (Matching, JobStarted)
)
START_DISCARD: Final = RpcOperation(
    JOURNAL_REQUESTS, "StartDiscard", StartMove, (Matching, JobStarted)
)
READ_JOB: Final = RpcOperation(JOURNAL_REQUESTS, "ReadJob", ReadJob, (Job,))
LIST_JOBS: Final = RpcOperation(JOURNAL_REQUESTS, "ListJobs", ListJobs, (JobPage,))
CANCEL_JOB: Final = RpcOperation(JOURNAL_REQUESTS, "CancelJob", CancelJob, (Job,))

DEAD_OPERATIONS: Final[tuple[RpcOperation[Any], ...]] = (
    LIST_DEAD,
    GROUP_DEAD,
    START_REDRIVE,
    START_DISCARD,
)
JOB_OPERATIONS: Final[tuple[RpcOperation[Any], ...]] = (READ_JOB, LIST_JOBS, CANCEL_JOB)
