"""HTTP bodies that differ from the messages with the same purpose."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from shared.contracts.journal_reads import SelectedClient
from shared.contracts.schedule_changes import NewContext, NewScheme, NewUrl
from shared.contracts.schedule_requests import MAX_BATCH_SIZE, CallbackCreated
from shared.contracts.schedules import Delay, RunAt, ScheduleCallback, Url
from shared.http.problem import Problem


class CallbackChange(BaseModel):
    """The changes of a waiting callback. Everything that is not given stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"minProperties": 1})

    run_at: RunAt = None
    delay: Delay = None
    url: NewUrl = None
    notify_scheme: NewScheme = None
    context: NewContext = None


class ReplayChange(BaseModel):
    """What differs when a callback is sent again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_id: SelectedClient = None
    url: Url | None = Field(default=None, description="Send it to this URL instead.")


class Batch(BaseModel):
    """Callbacks to schedule. Each is accepted or rejected on its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    callbacks: Annotated[list[ScheduleCallback], Field(min_length=1, max_length=MAX_BATCH_SIZE)]


class RejectedCallback(BaseModel):
    """A callback of a batch that was not scheduled; the problem that it would be on its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: Problem


BatchItem = TypeAliasType("BatchItem", CallbackCreated | RejectedCallback)


class BatchResult(BaseModel):
    """A result for each callback of a batch, in the same order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: list[BatchItem]


class EventAccepted(BaseModel):
    """The broker has confirmed the event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="The id of the event in logs and postings.")
