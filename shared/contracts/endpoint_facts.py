"""Facts about endpoints, on the exchange `outcomes`. The routing key is the type.

Like the facts about callbacks (facts.py), one AMQP message of type `Facts` carries a batch of one
type.
"""

from typing import Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class EndpointDisabled(BaseModel):
    """An endpoint was disabled, because it failed for too long or responded with 410."""

    # Readers ignore the fields of newer versions.
    model_config = ConfigDict(frozen=True)

    type: Literal["endpoint.disabled"] = "endpoint.disabled"
    fact_id: str = Field(description="Unique. A repeat of the same fact has the same id.")
    at: AwareDatetime
    endpoint_id: UUID
    client_id: str | None
    failing_since: AwareDatetime
