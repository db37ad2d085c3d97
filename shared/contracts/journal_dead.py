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
from shared.contracts.schedules import ENVELOPE, STRICT
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

    letter_id: str = Field(description="Its own id, another one if the message dies again.")
    logical_id: str | None = Field(description="The id that is the same on all retries.")
    client_id: str | None
    target: str | None = Field(description="Scheme, host and port of a callback.")
    reason: str
    at: AwareDatetime = Field(description="When it was dead-lettered.")


class LetterPage(BaseModel):
    """A page of dead letters. `next_cursor` is null on the last page."""

    model_config = RESPONSE

    items: list[Letter]
    next_cursor: str | None


class ReadLetter(BaseModel):
    """Read one dead letter in its queue, with secrets hidden."""

    model_config = ENVELOPE

    queue: SearchText
    id: SearchText = Field(description="Its `letter_id`.")


class LetterDetails(Letter):
    """A dead letter with its properties, headers and body. Secrets are replaced by `******`."""

    attempts: int | None = Field(description="Null if Ringback made no attempt.")
    properties: dict[str, Any]
    headers: dict[str, Any]
    body: Any = Field(description="The JSON of the body, or a text that says why it is not shown.")


class GroupDead(BaseModel):
    """Count the dead letters of a work queue by reason or target, the most frequent first.

    The key of a reason has no numbers, ids and quotations. A filter with this key as its `reason`
    selects the group.
    """

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
    """Groups of dead letters, and the number of all dead letters of the queue."""

    model_config = RESPONSE

    items: list[Group]
    next_cursor: None = Field(default=None, description="Always null: there is one page.")
    total: int


class MoveLetters(BaseModel):
    """Which dead letters to redrive or discard, and how fast. With `dry_run`, only count them."""

    model_config = STRICT

    filter: Filter = Field(default=Filter(), description="Default: all dead letters.")
    dry_run: bool = False
    rate: Rate = Field(default=DEFAULT_RATE, description="Dead letters per second.")


class StartMove(BaseModel):
    """Redrive or discard the dead letters of a work queue that match."""

    model_config = ENVELOPE

    queue: SearchText
    move: MoveLetters


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
READ_LETTER: Final = RpcOperation(JOURNAL_REQUESTS, "ReadLetter", ReadLetter, (LetterDetails,))
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
    READ_LETTER,
    GROUP_DEAD,
    START_REDRIVE,
    START_DISCARD,
)
JOB_OPERATIONS: Final[tuple[RpcOperation[Any], ...]] = (READ_JOB, LIST_JOBS, CANCEL_JOB)
