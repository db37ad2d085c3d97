"""The settings of ingestion."""

from typing import Annotated

from pydantic import Field, FilePath

from shared.settings import EMPTY_IS_NONE, TableSettings


class IngestionSettings(TableSettings, env_prefix="RINGBACK_INGESTION_"):
    """The table `[ingestion]` of ringback.toml."""

    rules_file: Annotated[FilePath | None, EMPTY_IS_NONE] = Field(
        default=None,
        validation_alias="RINGBACK_RULES_FILE",
        description="File of rules in addition to the shipped ones.",
        examples=["/etc/ringback/rules.toml"],
    )
    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=2000, description="Maximum number of events in flight in one worker."
    )
    batch: Annotated[int, Field(ge=1, le=5000)] = Field(
        default=500,
        description="Maximum number of events in one transaction, and of commands in one publish.",
    )
    retention: Annotated[float, Field(ge=1, le=3650)] = Field(
        default=7.0, description="Time for which repeated events are recognised, in days."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=262_144,
        description="Maximum size of an event in bytes. Larger ones are dead-lettered.",
    )
