"""The bodies that over HTTP are other than the messages: the path names what is meant."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.schedule_requests import MAX_BATCH_SIZE
from shared.contracts.schedules import Delay, RunAt, ScheduleCallback


class Move(BaseModel):
    """The new moment: either `run_at` or `delay`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_at: RunAt = None
    delay: Delay = None


class Batch(BaseModel):
    """Callbacks to schedule at once; each is accepted or refused by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    callbacks: Annotated[list[ScheduleCallback], Field(min_length=1, max_length=MAX_BATCH_SIZE)]


class EventAccepted(BaseModel):
    """The broker has the event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="What the event is known by, in Ringback's logs and postings.")
