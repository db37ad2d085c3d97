"""Facts about scheduled callbacks, on the exchange `outcomes`. The routing key is the type.

Like the facts about callbacks (facts.py), one AMQP message of type `Facts` carries a batch of one
type.
"""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Kind = Literal["schedule.notified", "schedule.failed", "schedule.cancelled", "schedule.retrying"]


class ScheduleFact(BaseModel):
    """A callback was notified, failed or was cancelled, or a main retry is planned."""

    # Readers ignore the fields of newer versions.
    model_config = ConfigDict(frozen=True)

    type: Kind
    fact_id: str = Field(description="Unique. A repeat of the same fact has the same id.")
    at: AwareDatetime
    schedule_id: UUID
    client_id: str | None
    group_key: str | None
    event_key: str | None
    occurrence: int | None = Field(description="Number of the occurrence, from 1, if it recurs.")
    attempts: int
    error: str | None = Field(
        description="Reason of the failure or retry, or the last error before."
    )
    next_at: AwareDatetime | None = Field(description="Time of the main retry, if one is planned.")


class _OfSchedule(BaseModel):
    """The fields that the facts about the course of a scheduled callback share."""

    model_config = ConfigDict(frozen=True)

    fact_id: str = Field(description="Unique. A repeat of the same fact has the same id.")
    at: AwareDatetime
    schedule_id: UUID
    client_id: str | None
    group_key: str | None = None
    event_key: str | None = None
    trace_id: str | None = None


class ScheduleCreated(_OfSchedule):
    """A callback was scheduled."""

    type: Literal["schedule.created"] = "schedule.created"
    run_at: AwareDatetime
    target: str | None = Field(
        default=None, description="Scheme, host and port; null for the transport amqp."
    )
    recurs: bool = False


class ScheduleRescheduled(_OfSchedule):
    """A waiting callback has a new due time."""

    type: Literal["schedule.rescheduled"] = "schedule.rescheduled"
    run_at: AwareDatetime


class ScheduleDispatched(_OfSchedule):
    """A due callback was published, and the broker has confirmed it."""

    type: Literal["schedule.dispatched"] = "schedule.dispatched"
    callback_id: str = Field(description="The id that the receiver sees.")
    dispatch: int = Field(description="Number of the dispatch, from 1.")
    lag: float = Field(description="Seconds from the due time to the confirm.")


ScheduleStep = Annotated[
    ScheduleCreated | ScheduleRescheduled | ScheduleDispatched, Field(discriminator="type")
]
