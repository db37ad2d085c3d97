"""Settings of ingestion."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class IngestionSettings(BaseSettings):
    """The table `[ingestion]` of ringback.toml, and `RINGBACK_INGESTION_…`."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_INGESTION_", extra="forbid", hide_input_in_errors=True, frozen=True
    )

    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=2000, description="Unacknowledged events per process."
    )
    batch: Annotated[int, Field(ge=1, le=5000)] = Field(
        default=500, description="Events per transaction, and commands per publish."
    )
    retention: Annotated[float, Field(ge=1, le=3650)] = Field(
        default=7.0,
        description="Days in which duplicate events are recognised.",
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=262_144,
        description="Maximum size of an event in bytes; larger ones are dead-lettered.",
    )
