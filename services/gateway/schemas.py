"""HTTP bodies that differ from the messages with the same purpose."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.schedule_requests import MAX_BATCH_SIZE
from shared.contracts.schedules import Delay, RunAt, ScheduleCallback


class NewTime(BaseModel):
    """The new time of a callback: either `run_at` or `delay`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_at: RunAt = None
    delay: Delay = None


class Batch(BaseModel):
    """Callbacks to schedule. Each is accepted or rejected on its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    callbacks: Annotated[list[ScheduleCallback], Field(min_length=1, max_length=MAX_BATCH_SIZE)]


class EventAccepted(BaseModel):
    """The broker has confirmed the event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="The id of the event in logs and postings.")
