"""Facts about scheduled callbacks, on the exchange `outcomes`. The routing key is the type.

Like the facts about callbacks (facts.py), one AMQP message of type `Facts` carries a batch of one
type.
"""

from typing import Literal
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
