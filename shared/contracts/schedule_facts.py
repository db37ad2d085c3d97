"""Facts about scheduled events, on the exchange `outcomes`; the type is the routing key.

They travel as those of callbacks do (facts.py): one AMQP message of type `Facts` carries a batch
of one type.
"""

from typing import Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Kind = Literal["schedule.notified", "schedule.failed", "schedule.cancelled", "schedule.retrying"]


class ScheduleFact(BaseModel):
    """An event was notified, failed or was cancelled, or goes on trying after quick retries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Kind
    fact_id: str = Field(description="Unique; a repeat of the same fact carries the same id.")
    at: AwareDatetime
    schedule_id: UUID
    client_id: str | None
    group_key: str | None
    event_key: str | None
    occurrence: int | None = Field(description="Of a recurring event: which it is, from 1.")
    attempts: int
    error: str | None = Field(description="Why it failed or is retried, or the last error before.")
    next_at: AwareDatetime | None = Field(description="When it is tried again, if it is.")
