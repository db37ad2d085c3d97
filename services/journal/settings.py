"""The settings of the journal. RINGBACK_JOURNAL_BACKLOG and _BODIES concern other services, too."""

from typing import Annotated

from pydantic import Field

from shared.settings import TableSettings


class JournalSettings(TableSettings, env_prefix="RINGBACK_JOURNAL_"):
    """The table `[journal]` of ringback.toml."""

    retention: Annotated[float, Field(ge=1, le=3650)] = Field(
        default=14.0, description="Retention of everything in the journal, in days."
    )
    batch: Annotated[int, Field(ge=1, le=50_000)] = Field(
        default=5000, description="Number of facts after which a batch is stored."
    )
    prefetch: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=100, description="Maximum number of requests in progress in one worker."
    )
    connections: Annotated[int, Field(ge=4, le=100)] = Field(
        default=8, description="Maximum number of database connections of one worker."
    )
