"""PausedTargets: the targets that operators have paused. Stream `controls`, its last message.

The journal publishes the whole list after each change, when it starts, and every minute. Callback
processes read the last message before they consume, and follow the stream.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

PAUSED_TARGETS: Final = "PausedTargets"
# Paused targets at a time: 300 kB.
MAX_PAUSED: Final = 1000


class PausedTargets(BaseModel):
    """All targets that get no callbacks now."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(
        description="Grows with each change. A message with a smaller one is outdated."
    )
    targets: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=300)]],
        Field(description="Scheme, host and port of each."),
    ]
