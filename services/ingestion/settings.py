"""The settings of ingestion."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from shared.settings import EMPTY_IS_NONE, TableSettings


class IngestionSettings(TableSettings, env_prefix="RINGBACK_INGESTION_"):
    """The table `[ingestion]` of ringback.toml."""

    rules_file: Annotated[Path | None, EMPTY_IS_NONE] = Field(
        default=None,
        validation_alias="RINGBACK_RULES_FILE",
        description="File of rules in addition to the shipped ones.",
        examples=["/etc/ringback/rules.toml"],
    )
    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=2000, description="Events in flight in one worker."
    )
    batch: Annotated[int, Field(ge=1, le=5000)] = Field(
        default=500, description="Events in one transaction, and commands in one publish."
    )
    retention: Annotated[float, Field(ge=1, le=3650)] = Field(
        default=7.0, description="Days for which a repeated event is recognised."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=262_144, description="Maximum size of an event; a larger one is dead-lettered."
    )
